"""How many replicas a ModelDeployment has, and the latency it promises.

Never decides: the autoscaler is the operator's.
"""

from typing import Literal

from pydantic import Field

from tuneloop_core.api.base import SpecModel, cel, rules
from tuneloop_core.api.formats import Duration


class ScalingTarget(SpecModel):
    """The load at which one replica is full."""

    ongoing_requests: int = Field(
        default=16, ge=1, le=4096, description="Requests in progress or held, per replica: above it, another is added."
    )


class ScalingSchedule(SpecModel):
    """A minimum for part of the week."""

    cron: str = Field(
        max_length=64,
        description="When it begins, on the clock of timeZone: minute hour day month weekday.",
        json_schema_extra=rules(
            cel(
                "self.matches('^[^ ]+( [^ ]+){4}$')",
                "cron needs five fields, minute hour day month weekday, such as '0 8 * * 1-5'",
            )
        ),
    )
    time_zone: str = Field(default="UTC", max_length=64, description="IANA name, such as Europe/Berlin.")
    duration: Duration = Field(description="How long it holds, in real time.")
    min_replicas: int = Field(ge=0, le=256, description="The minimum meanwhile; maxReplicas still holds.")


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
        default=None,
        ge=0,
        le=256,
        description="For mode External; kubectl scale, a HorizontalPodAutoscaler or KEDA write it. At 0 a request "
        "still wakes one replica, until scaleDownDelay after the last request.",
    )
    min_replicas: int = Field(
        default=1,
        ge=0,
        le=256,
        description="For mode Auto. At 0 it sleeps after scaleDownDelay without a request, and the first request is "
        "held while it wakes. A new deployment begins with 1, so that its first start is seen.",
    )
    max_replicas: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="For mode Auto; left out it equals minReplicas, but is at least 1.",
    )
    target: ScalingTarget | None = Field(default=None, description="Load per replica; left out, its defaults hold.")
    scale_down_delay: Duration | None = Field(
        default=None,
        description="How long load must have been low before replicas go, and how long without a request before the "
        "last one goes; left out it is 5m.",
    )
    schedules: list[ScalingSchedule] = Field(
        default=[], max_length=16, description="Minimums by time of the week; of several the highest holds."
    )


class ServiceLevel(SpecModel):
    """Latency that users are promised, as the gateway measures it."""

    ttft_p95: Duration | None = Field(default=None, description="95th percentile of time to first token.")
    tpot_p95: Duration | None = Field(default=None, description="95th percentile of time per output token.")
