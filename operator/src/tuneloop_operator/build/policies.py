"""Network policies of a namespace: who reaches stage pods and servers, and what they reach. Pure.

Whether they are enforced is the cluster's network plugin's matter; we only ship them.
"""

from typing import Any

from tuneloop_core.constants import LABEL_COMPONENT, LABEL_MANAGED_BY, MANAGED_BY, PROGRESS_PORT, SERVER_PORT
from tuneloop_core.settings import Settings
from tuneloop_operator.build.meta import namespace_metadata

Obj = dict[str, Any]

METADATA_ADDRESSES = ["169.254.0.0/16"]
NAMESPACE_LABEL = "kubernetes.io/metadata.name"


def build_policies(namespace: str, settings: Settings) -> list[Obj]:
    """All policies of one namespace; none where the chart turned them off."""
    if not settings.network_policies:
        return []
    return [
        _policy(namespace, "tuneloop-train", ["train", "check"], ingress=_from_system(settings, PROGRESS_PORT)),
        _policy(namespace, "tuneloop-stages", ["fetch", "publish"], egress=_outside(settings)),
        _policy(namespace, "tuneloop-server", ["server"], ingress=_from_system(settings, SERVER_PORT)),
    ]


def _policy(
    namespace: str,
    name: str,
    components: list[str],
    *,
    ingress: list[Obj] | None = None,
    egress: list[Obj] | None = None,
) -> Obj:
    """Both directions are closed but for what is listed."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": namespace_metadata(namespace, name, "policy"),
        "spec": {
            "podSelector": {
                "matchLabels": {LABEL_MANAGED_BY: MANAGED_BY},
                "matchExpressions": [{"key": LABEL_COMPONENT, "operator": "In", "values": components}],
            },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress or [],
            "egress": egress or [],
        },
    }


def _from_system(settings: Settings, port: int) -> list[Obj]:
    """From operator and gateway, by their namespace."""
    peer = {"namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: settings.namespace}}}
    return [{"from": [peer], "ports": [{"protocol": "TCP", "port": port}]}]


def _outside(settings: Settings) -> list[Obj]:
    """Anywhere but metadata services and what the chart refuses; the fetcher checks again, after resolving names."""
    refused = METADATA_ADDRESSES + settings.hub.refused_addresses
    blocks: list[Obj] = []
    for cidr, separator in (("0.0.0.0/0", "."), ("::/0", ":")):
        excepted = sorted(block for block in refused if separator in block)
        blocks.append({"ipBlock": {"cidr": cidr} | ({"except": excepted} if excepted else {})})
    return [{"to": blocks}]
