"""What an administrator sets in the chart's values, as operator and gateway read it.

The chart renders ``settings.yaml`` from its values, whose schema refuses what it does not know; the defaults here are
the chart's defaults. Never holds a secret: names of Secrets at most.
"""

import logging
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from tuneloop_core.plan.accelerators import PlanSettings
from tuneloop_core.stages import Wire

logger = logging.getLogger(__name__)


class ImageSettings(Wire):
    """Images of the pods that the operator makes."""

    trainer: str
    server: str
    pull_policy: str = "IfNotPresent"
    pull_secrets: list[str] = []


class StoreSettings(Wire):
    """The claim made in each namespace that uses Tuneloop."""

    storage_class: str = ""
    access_mode: str = "ReadWriteOnce"
    size: str = "50Gi"


class HubSettings(Wire):
    """Where ``hf://`` leads."""

    endpoint: str = ""
    refused_addresses: list[str] = []
    allowed_addresses: list[str] = []  # CIDRs of nodes that are not refused
    max_bytes: int = 0


class SecretSettings(Wire):
    """Which Secrets specs may name: shell patterns of names; none allow all."""

    allowed_names: list[str] = []


class GatewayTimeouts(Wire):
    """How long the gateway waits, seconds."""

    connect_seconds: float = Field(default=2.0, gt=0)  # for a connection to a server pod
    first_byte_seconds: float = Field(default=1800.0, gt=0)  # for an answer's first byte: a long one without streaming
    stream_first_byte_seconds: float = Field(default=300.0, gt=0)  # for a stream's, which comes before its first token
    idle_seconds: float = Field(default=300.0, gt=0)  # for the next byte of an answer
    slow_client_seconds: float = Field(default=120.0, gt=0)  # for a client that does not read


class BalanceSettings(Wire):
    """How the gateway chooses among the replicas of a deployment."""

    prefix_bytes: int = Field(default=2048, ge=0, le=65536)
    eject_seconds: float = Field(default=5.0, gt=0)
    eject_longest_seconds: float = Field(default=60.0, gt=0)
    eject_share: float = Field(default=0.5, ge=0, le=1)


class HoldSettings(Wire):
    """Requests that wait for a replica that is ready and has room: bounds of a deployment's queue in one gateway."""

    max_requests: int = Field(default=256, ge=1)
    max_bytes: int = Field(default=64 * 1024 * 1024, ge=1)  # of their bodies
    max_seconds: float = Field(default=300.0, gt=0)
    heartbeat_seconds: float = Field(default=5.0, gt=0)  # between comments to a waiting stream, and before the first
    ongoing_per_replica: int = Field(default=1024, ge=1)  # what is beyond waits; a spec may say less


class AccessLogSettings(Wire):
    """One line of JSON a request on the gateway's standard output."""

    enabled: bool = True
    prompts: bool = False


class GatewaySettings(Wire):
    """How users and the operator reach the gateway."""

    url: str = "http://tuneloop-gateway.tuneloop-system.svc.cluster.local"
    service_account: str = "tuneloop-gateway"
    service: str = "tuneloop-gateway"
    allow_without_keys: bool = False
    max_body_bytes: int = Field(default=4 * 1024 * 1024, gt=0)
    timeouts: GatewayTimeouts = GatewayTimeouts()
    balance: BalanceSettings = BalanceSettings()
    hold: HoldSettings = HoldSettings()
    access_log: AccessLogSettings = AccessLogSettings()


class ServerSettings(Wire):
    """Server pods of ModelDeployments; a change counts for the revisions made after it."""

    drain_seconds: int = Field(default=600, ge=0)  # that requests may go on once a replica is asked to go


class StageResources(Wire):
    """Requests and limits for the pods of CPU stages; train takes the user's ``pod.resources`` first."""

    cpu_request: str = "250m"
    memory_request: str = "512Mi"
    memory_limit: str = "2Gi"


class Settings(Wire):
    """The whole settings file."""

    namespace: str = "tuneloop-system"
    namespaces: list[str] = []  # watched; empty is the whole cluster
    cluster_scoped_rights: bool = False  # may read nodes
    service_account: str = "tuneloop-operator"
    images: ImageSettings
    store: StoreSettings = StoreSettings()
    hub: HubSettings = HubSettings()
    secrets: SecretSettings = SecretSettings()
    gateway: GatewaySettings = GatewaySettings()
    server: ServerSettings = ServerSettings()
    stages: StageResources = StageResources()
    plan: PlanSettings = PlanSettings()
    simulated_accelerators: bool = False  # of test clusters: nodes only claim to have some, and training is on CPU
    network_policies: bool = True
    progress_interval_seconds: float = 5.0
    resync_seconds: float = 300.0


def load_settings(path: Path) -> Settings:
    """Read and check the file; a ``pydantic.ValidationError`` names the field that is wrong.

    A setting of a later release is named in the log and ignored: a pod of this one that is started anew during or
    after an upgrade finds the later chart's file.
    """
    document = yaml.safe_load(path.read_text())
    for name in unknown_settings(document):
        logger.warning("%s: %s is no setting of this release and is ignored", path, name)
    return Settings.model_validate(document)


def unknown_settings(document: Any) -> list[str]:
    """Names, with dots, of what is in a settings document and not in ``Settings``."""
    try:
        Settings.model_validate(document, extra="forbid")
    except ValidationError as error:
        found = [detail for detail in error.errors(include_url=False) if detail["type"] == "extra_forbidden"]
        return [".".join(str(part) for part in detail["loc"]) for detail in found]
    return []
