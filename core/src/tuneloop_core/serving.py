"""The contract between operator, server pods and gateway.

Shapes only. The operator writes ``server.json``, ``adapters.json`` and ``guard.json`` into a ConfigMap; the server
reads them; the gateway reports its load in ``GatewayLoad``. Never does I/O.
"""

from typing import Any, Literal

from tuneloop_core.stages import Wire


class ServerConfig(Wire):
    """server.json: what the launcher starts the engine with. Changing it makes a new revision."""

    served_name: str
    model_path: str = "/model"
    engine: dict[str, Any]  # spec.engine, camelCase, without what is the default: an older server need not know it
    accelerators: int = 0


class Adapter(Wire):
    """One adapter version: the engine knows it as ``name@digest12`` under a path that holds the digest."""

    name: str
    digest: str  # sha256:<hex>
    path: str  # artifacts/<hex>, below /artifacts without the first folder

    @property
    def engine_name(self) -> str:
        """The name in the engine, never reused for other weights."""
        return f"{self.name}@{self.digest.removeprefix('sha256:')[:12]}"


class AdapterList(Wire):
    """adapters.json: the adapters that should be loaded, the whole truth."""

    adapters: list[Adapter] = []


class AdapterState(Wire):
    """One adapter in one server pod. Parked is answered too: the engine reads it again when it is asked for."""

    engine_name: str
    state: Literal["Loading", "Loaded", "Parked", "Failed", "Unloading"]
    message: str = ""

    @property
    def answers(self) -> bool:
        """Whether a request for it is answered."""
        return self.state in ("Loaded", "Parked")


class ServerStatus(Wire):
    """GET /tuneloop/status."""

    ready: bool
    draining: bool
    model: str
    adapters: list[AdapterState] = []
    phases: dict[str, float] = {}  # cold start, seconds per phase


class GuardConfig(Wire):
    """guard.json: whose tokens open which paths. Subjects are ``system:serviceaccount:NS:NAME``."""

    issuer: str
    audience: str
    jwks: dict[str, Any]
    inference: list[str]
    admin: list[str]


class Histogram(Wire):
    """A cumulative histogram: ``counts[i]`` observations ≤ ``bounds[i]`` seconds, the last for +Inf."""

    bounds: list[float]
    counts: list[int]
    sum: float = 0.0


class ModelLoad(Wire):
    """One name under one version: what canary arms are compared by, and what latency by model comes from."""

    name: str
    engine_name: str = ""
    revision: str = ""  # r<n>; empty where the pods' revision does not matter
    requests: int = 0
    errors: int = 0
    completion_tokens: int = 0
    ttft: Histogram | None = None
    tpot: Histogram | None = None
    itl: Histogram | None = None
    e2e: Histogram | None = None
    slo_met: int = 0  # requests that met every objective of spec.slo
    slo_missed: int = 0  # and those that did not, or failed
    feedback_good: int = 0
    feedback_bad: int = 0


class DeploymentLoad(Wire):
    """One ModelDeployment as one gateway sees it since its start. A request is either ongoing or queued."""

    namespace: str
    name: str
    ongoing: int = 0
    queued: int = 0  # held for want of a ready replica, or waiting for their turn
    unserved_seconds: float = 0.0  # how long the oldest of them has been held
    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft: Histogram | None = None
    tpot: Histogram | None = None
    itl: Histogram | None = None
    e2e: Histogram | None = None
    slo_met: int = 0
    slo_missed: int = 0
    models: list[ModelLoad] = []  # one per (name, engine name, revision) with requests


class GatewayLoad(Wire):
    """GET /internal/load of a gateway pod; ``started`` tells a restart (counters begin anew)."""

    instance: str
    started: str
    deployments: list[DeploymentLoad] = []
