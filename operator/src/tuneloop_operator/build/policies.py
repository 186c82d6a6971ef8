"""Network policies of a namespace: who reaches stage pods and servers, and what they reach. Pure.

Whether they are enforced is the cluster's network plugin's matter; we only ship them.
"""

from typing import Any

from tuneloop_core.constants import LABEL_COMPONENT, LABEL_MANAGED_BY, MANAGED_BY, PROGRESS_PORT, SERVER_PORT
from tuneloop_core.settings import Settings
from tuneloop_operator.build.meta import namespace_metadata

Obj = dict[str, Any]

METADATA_ADDRESSES = ["169.254.0.0/16", "100.100.100.200/32", "fe80::/10", "fd00:ec2::/32"]
NODE_LOCAL_DNS = "169.254.20.10/32"  # link-local, on the pod's own node
DNS_PORT = 53
DNS_LABELS = {"k8s-app": "kube-dns"}  # of CoreDNS too, wherever it runs
NAMESPACE_LABEL = "kubernetes.io/metadata.name"


def build_policies(namespace: str, settings: Settings) -> list[Obj]:
    """All policies of one namespace."""
    return [
        _policy(namespace, "tuneloop-train", ["train", "check"], ingress=_from_system(settings, PROGRESS_PORT)),
        _policy(namespace, "tuneloop-stages", ["fetch", "publish"], egress=_outside(settings)),
        _policy(namespace, "tuneloop-server", ["server"], ingress=_from_system(settings, SERVER_PORT)),
    ]


def names_rule() -> Obj:
    """Egress to the cluster's DNS, in a pod or on the node."""
    resolver = {"namespaceSelector": {}, "podSelector": {"matchLabels": DNS_LABELS}}
    ports = [{"protocol": protocol, "port": DNS_PORT} for protocol in ("UDP", "TCP")]
    return {"to": [resolver, {"ipBlock": {"cidr": NODE_LOCAL_DNS}}], "ports": ports}


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
    """Anywhere but metadata services and what the chart refuses; the fetcher checks again, after resolving names.

    Some plugins (Cilium, GKE Dataplane V2) match no pod by its address, so that a hub or an S3 in the cluster is named
    as a pod too: of any namespace and on any port, which the blocks allow elsewhere.
    """
    refused = METADATA_ADDRESSES + settings.hub.refused_addresses
    peers: list[Obj] = [{"namespaceSelector": {}}]
    for cidr, separator in (("0.0.0.0/0", "."), ("::/0", ":")):
        excepted = sorted(block for block in refused if separator in block)
        peers.append({"ipBlock": {"cidr": cidr, "except": excepted}})
    return [names_rule(), {"to": peers}]
