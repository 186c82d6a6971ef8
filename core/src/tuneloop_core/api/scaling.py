"""How many replicas a ModelDeployment has, and how a new revision takes over.

Never decides: the autoscaler and the rollout are the operator's.
"""

from typing import Annotated, Literal

from pydantic import Field

from tuneloop_core.api.base import SpecModel, cel, rules
from tuneloop_core.api.formats import Decimal, Duration


class ScalingTarget(SpecModel):
    """The load at which one replica is full."""

    ongoing_requests: int = Field(default=16, ge=1, le=4096, description="Requests in progress per replica.")


class ScalingSchedule(SpecModel):
    """A minimum for part of the week."""

    cron: str = Field(max_length=64, description="When it begins: minute hour day month weekday.")
    time_zone: str = Field(default="UTC", max_length=64, description="IANA name of the time zone.")
    duration: Duration = Field(description="How long it holds.")
    min_replicas: int = Field(ge=0, le=256, description="The minimum meanwhile.")


class Scaling(SpecModel):
    """Replicas: chosen by Tuneloop (Auto) or by whoever writes the scale subresource (External)."""

    model_config = {
        "json_schema_extra": rules(
            cel(
                "self.mode == 'External' || !has(self.replicas)",
                "replicas is for mode External (kubectl scale, an HPA): set scaling.mode: External, or use minReplicas "
                "and maxReplicas",
            ),
            cel(
                "self.mode != 'External' || has(self.replicas)",
                "mode External needs replicas: the number to begin with",
            ),
            cel(
                "!has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
                "minReplicas must be at most maxReplicas",
            ),
        )
    }

    mode: Literal["Auto", "External"] = Field(
        default="Auto", description="Auto: Tuneloop chooses between minReplicas and maxReplicas. External: replicas."
    )
    replicas: int | None = Field(
        default=None, ge=0, le=256, description="For mode External; kubectl scale and HorizontalPodAutoscaler write it."
    )
    min_replicas: int = Field(
        default=1,
        ge=0,
        le=256,
        description="For mode Auto. This release runs exactly this many, at least 1; scaling from zero comes later.",
    )
    max_replicas: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="For mode Auto; left out it equals minReplicas. This release does not scale out by itself.",
    )
    target: ScalingTarget | None = Field(default=None, description="Load per replica. Not in this release.")
    scale_down_delay: Duration | None = Field(
        default=None, description="How long load must be low before replicas go. Not in this release."
    )
    schedules: list[ScalingSchedule] = Field(
        default=[], max_length=16, description="Minimums by time of the week. Not in this release."
    )


class ServiceLevel(SpecModel):
    """Latency that users are promised, as the gateway measures it."""

    ttft_p95: Duration | None = Field(default=None, description="95th percentile of time to first token.")
    tpot_p95: Duration | None = Field(default=None, description="95th percentile of time per output token.")


class CanaryLimits(SpecModel):
    """What a canary may be worse by, before it is rolled back."""

    error_rate: Decimal = Field(default="0.02", description="Share of failed requests.")
    ttft_ratio: Decimal = Field(default="1.5", description="Its TTFT P95 over that of the old revision.")
    tpot_ratio: Decimal = Field(default="1.3", description="Its TPOT P95 over that of the old revision.")
    feedback_drop: Decimal = Field(default="0.1", description="Drop of the share of good feedback.")


class Canary(SpecModel):
    """A new revision takes a growing share of the traffic."""

    steps: list[Annotated[int, Field(ge=1, le=100)]] = Field(
        default=[10, 50], max_length=10, description="Shares of the traffic, percent, rising."
    )
    interval: Duration = Field(default="5m", description="Time at each step.")
    min_requests: int = Field(default=50, ge=1, le=1_000_000, description="Requests needed to judge a step.")
    max_duration: Duration = Field(default="1h", description="Give up after this time.")
    on_no_traffic: Literal["Hold", "Promote", "Rollback"] = Field(
        default="Hold", description="What to do when too few requests came."
    )
    limits: CanaryLimits = Field(default=CanaryLimits(), description="When to roll back.")


class Rollout(SpecModel):
    """How a new revision takes over."""

    strategy: Literal["RollingUpdate", "Canary"] = Field(
        default="RollingUpdate",
        description="RollingUpdate: the new revision takes all traffic once it is ready, then the old one goes. Canary "
        "is not in this release.",
    )
    canary: Canary | None = Field(default=None, description="For strategy Canary. Not in this release.")
