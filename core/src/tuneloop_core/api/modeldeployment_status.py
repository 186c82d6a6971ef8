"""ModelDeployment status: what is served, where, and how fast, for people and programs.

Latencies are durations in the same words as ``spec.slo`` ("48.2ms"), so that promise and measurement read alike in
``kubectl get``. Every list has a maximum, so that a full status stays under 64 KiB. Never a place for secrets.
"""

from typing import Annotated, Literal

from pydantic import Field

from tuneloop_core.api.base import StatusModel
from tuneloop_core.api.conditions import Condition
from tuneloop_core.api.finetunejob_status import ModelStatus
from tuneloop_core.api.formats import Timestamp
from tuneloop_core.api.rollout import CanaryArm, RejectedVersion, RolloutStatus

_Latency = Annotated[str, Field(max_length=32)]


class ServedName(StatusModel):
    """A name that clients may send as ``model``."""

    name: str = Field(max_length=63, description="The name.")
    engine_name: str = Field(default="", max_length=128, description="What the engine calls it, with the digest.")
    kind: Literal["Base", "Adapter"] = Field(description="Base model or adapter.")
    ready: bool = Field(default=False, description="Whether a request for it is answered now.")
    canary: CanaryArm | None = Field(default=None, description="The version that takes a share of its requests.")


class AdapterStatus(StatusModel):
    """One adapter of the spec, as resolved and loaded. Outlives the job it came from."""

    name: str = Field(max_length=63, description="Its name in the spec.")
    digest: str = Field(default="", max_length=80, description="sha256:HEX of the artifact: its version.")
    path: str = Field(default="", max_length=512, description="Its folder in the namespace's store.")
    engine_name: str = Field(default="", max_length=128, description="name@first 12 digits of the digest.")
    next_engine_name: str | None = Field(
        default=None, max_length=128, description="The version that is loaded beside it, to take its place."
    )
    since: Timestamp | None = Field(default=None, description="When this version took over.")
    state: Literal["Waiting", "Loading", "Ready", "Failed"] = Field(description="Where it is.")
    ready_replicas: int = Field(default=0, ge=0, description="Replicas that have it loaded.")
    reason: str = Field(
        default="", max_length=64, description="Why the version asked for is not served, in one word; else empty."
    )
    message: str = Field(
        default="", max_length=1024, description="What it waits for or why it failed; which job a selector chose."
    )
    source: str = Field(default="", max_length=128, description="What the version was resolved from.")
    base: str = Field(default="", max_length=512, description="The base model that it was trained on, if known.")
    rank: int = Field(default=0, ge=0, description="Its highest rank, if known.")
    job: str = Field(default="", max_length=63, description="The FineTuneJob that published it, if one did.")
    job_created: Timestamp | None = Field(
        default=None, description="When that job was created: a selector never goes back to an older one."
    )


class RevisionStatus(StatusModel):
    """One Deployment: everything that makes its pods, pinned until the spec changes or the user asks."""

    name: str = Field(max_length=16, description="r1, r2 ...")
    image: str = Field(default="", max_length=512, description="The server image.")
    hash: str = Field(default="", max_length=80, description="Hash of everything that makes its pods.")
    created: Timestamp | None = Field(default=None, description="When it was made.")
    replicas: int = Field(default=0, ge=0, description="Pods wanted.")
    ready_replicas: int = Field(default=0, ge=0, description="Pods that answer.")
    ready: bool = Field(default=False, description="Whether it takes traffic.")


class Percentiles(StatusModel):
    """TTFT, TPOT and ITL of streamed requests and the duration of all, and how many kept ``spec.slo``."""

    ttft_p50: _Latency | None = Field(default=None, description="Time to first token, median.")
    ttft_p95: _Latency | None = Field(default=None, description="Time to first token, 95th percentile.")
    ttft_p99: _Latency | None = Field(default=None, description="Time to first token, 99th percentile.")
    tpot_p50: _Latency | None = Field(default=None, description="Time per output token, median.")
    tpot_p95: _Latency | None = Field(default=None, description="Time per output token, 95th percentile.")
    tpot_p99: _Latency | None = Field(default=None, description="Time per output token, 99th percentile.")
    itl_p50: _Latency | None = Field(default=None, description="Inter-token latency, median.")
    itl_p95: _Latency | None = Field(default=None, description="Inter-token latency, 95th percentile.")
    itl_p99: _Latency | None = Field(default=None, description="Inter-token latency, 99th percentile.")
    e2e_p50: _Latency | None = Field(default=None, alias="e2eP50", description="Whole request, median.")
    e2e_p95: _Latency | None = Field(default=None, alias="e2eP95", description="Whole request, 95th percentile.")
    e2e_p99: _Latency | None = Field(default=None, alias="e2eP99", description="Whole request, 99th percentile.")
    slo_attainment: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of the streamed or failed requests within every target of spec.slo; absent without targets.",
    )


class ModelLatency(Percentiles):
    """The same of one name that clients send as ``model``: the base or an adapter, all its versions together."""

    name: str = Field(max_length=63, description="The name.")
    requests: int = Field(default=0, ge=0, description="Requests that ended in the window.")


class LatencyStatus(Percentiles):
    """What users felt in the last window, measured at the gateways: streamed requests for TTFT, TPOT and ITL."""

    window_seconds: int = Field(default=0, ge=0, description="Length of the window.")
    requests: int = Field(default=0, ge=0, description="Requests that ended in it.")
    requests_per_minute: float = Field(default=0, ge=0, description="Rate of requests.")
    tokens_per_second: float = Field(default=0, ge=0, description="Answer tokens, all replicas together.")
    updated_time: Timestamp | None = Field(default=None, description="When the window ended.")
    models: list[ModelLatency] = Field(
        default=[], max_length=32, description="By name; where there are more, those with the most requests."
    )


class ScalingEvent(StatusModel):
    """One decision on replicas, and why."""

    time: Timestamp = Field(description="When.")
    from_replicas: int = Field(ge=0, description="Before.")
    to_replicas: int = Field(ge=0, description="After.")
    message: str = Field(default="", max_length=256, description="Why.")


class ScalingStatus(StatusModel):
    """How many replicas are wanted, and why."""

    desired: int = Field(default=0, ge=0, description="Replicas wanted.")
    reason: str = Field(default="", max_length=256, description="Why so many, when that was decided.")
    history: list[ScalingEvent] = Field(default=[], max_length=10, description="The last changes, oldest first.")


class ColdStartPhase(StatusModel):
    """One phase of a replica's start."""

    name: str = Field(
        max_length=64, description="scheduled, image (pulled, volumes mounted, started), model, engine or warmUp."
    )
    seconds: float = Field(ge=0, description="How long it took.")


class ColdStartStatus(StatusModel):
    """How long replicas take from the moment they are wanted to their first answer."""

    seconds: float = Field(
        default=0, ge=0, description="Median of the recent starts: what Retry-After tells a client that may not wait."
    )
    recent: Annotated[list[float], Field(max_length=5)] = Field(
        default=[], description="The last starts in seconds, oldest first."
    )
    time: Timestamp | None = Field(default=None, description="When the last one could answer.")
    phases: list[ColdStartPhase] = Field(default=[], max_length=16, description="The last one by phase, in order.")


class ModelDeploymentStatus(StatusModel):
    """Starts as observedGeneration -1, so that kstatus says InProgress until the operator has looked."""

    observed_generation: int = Field(
        default=-1, ge=-1, description="The metadata.generation that this status is about."
    )
    conditions: Annotated[list[Condition], Field(max_length=16)] = Field(
        default=[],
        description="Ready, Reconciling, Stalled and more.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    url: str = Field(default="", max_length=512, description="The OpenAI base URL: http(s)://GATEWAY/NAMESPACE/v1")
    replicas: int = Field(default=0, ge=0, description="Pods that exist.")
    ready_replicas: int = Field(default=0, ge=0, description="Pods that answer.")
    selector: str = Field(default="", max_length=512, description="Selects the pods; for the scale subresource.")
    model: ModelStatus | None = Field(default=None, description="The resolved base model.")
    models: Annotated[list[ServedName], Field(max_length=160)] = Field(
        default=[],
        description="All names that clients may send as 'model'.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    adapters: Annotated[list[AdapterStatus], Field(max_length=128)] = Field(
        default=[],
        description="Each adapter of the spec.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    revisions: Annotated[list[RevisionStatus], Field(max_length=10)] = Field(
        default=[],
        description="The Deployments of this resource, newest first.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    latency: LatencyStatus | None = Field(default=None, description="What users felt.")
    scaling: ScalingStatus | None = Field(default=None, description="Replicas wanted, and why.")
    cold_start: ColdStartStatus | None = Field(default=None, description="The last start of a replica.")
    rollout: RolloutStatus | None = Field(default=None, description="The rollout in progress, or the last one.")
    rejected: Annotated[list[RejectedVersion], Field(max_length=32)] = Field(
        default=[], description="Versions that were rolled back and are not tried again, newest first."
    )
