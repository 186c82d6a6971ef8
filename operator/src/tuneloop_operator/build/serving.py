"""What all revisions of a ModelDeployment share: Service, disruption budget, and the ConfigMap that servers read.

Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneloop_core.api.modeldeployment import ModelDeployment
from tuneloop_core.constants import MODELDEPLOYMENT_KIND, SERVER_PORT
from tuneloop_core.servertokens import server_audience
from tuneloop_core.serving import AdapterList, GuardConfig, ServerConfig
from tuneloop_core.settings import Settings
from tuneloop_operator import names
from tuneloop_operator.build.meta import child_metadata
from tuneloop_operator.build.server import COMPONENT, adapters_key, config_key, selector_labels

Obj = dict[str, Any]


@dataclass(frozen=True)
class Keys:
    """The cluster's issuer of service-account tokens and its public keys."""

    issuer: str
    jwks: dict[str, Any]


def build_service(deployment: ModelDeployment) -> Obj:
    """Headless: the gateway picks the pod. The EndpointSlices inherit our labels."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(deployment),
        "spec": {
            "clusterIP": "None",
            "selector": selector_labels(deployment.metadata.name),
            "ports": [{"name": "http", "port": SERVER_PORT, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def build_budget(deployment: ModelDeployment) -> Obj:
    """A drain of nodes takes one server at a time."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(deployment),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector_labels(deployment.metadata.name)}},
    }


def server_config(deployment: ModelDeployment) -> str:
    """server.json of a new revision."""
    spec = deployment.spec
    config = ServerConfig(
        served_name=deployment.metadata.name,
        engine=spec.engine.without_defaults(),
        accelerators=spec.resources.accelerators,
    )
    return config.model_dump_json(by_alias=True)


def build_config_map(
    deployment: ModelDeployment,
    servers: Mapping[str, str],
    adapters: Mapping[str, AdapterList],
    keys: Keys,
    settings: Settings,
) -> Obj:
    """The servers' truth: ``servers`` is server.json by revision label (``r1``), ``adapters`` by label what they load.

    ``adapters`` also has the list of what serves, under "": Deployments of earlier operators mount only that.
    """
    data = {config_key(label): text for label, text in servers.items()}
    data |= {adapters_key(label): text.model_dump_json(by_alias=True) for label, text in adapters.items()}
    data["guard.json"] = guard(deployment.metadata.namespace, keys, settings).model_dump_json(by_alias=True)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(deployment), "data": data}


def guard(namespace: str, keys: Keys, settings: Settings) -> GuardConfig:
    """Whose tokens for this namespace open which paths: the gateway asks, the operator administers."""
    return GuardConfig(
        issuer=keys.issuer,
        audience=server_audience(namespace),
        jwks=keys.jwks,
        inference=[_subject(settings.namespace, settings.gateway.service_account)],
        admin=[_subject(settings.namespace, settings.service_account)],
    )


def _subject(namespace: str, account: str) -> str:
    return f"system:serviceaccount:{namespace}:{account}"


def _metadata(deployment: ModelDeployment) -> Obj:
    owner = deployment.metadata
    return child_metadata(MODELDEPLOYMENT_KIND, owner, names.server(owner.name), COMPONENT)
