"""How a new version of an adapter, or of the model and its engine, takes over: what is asked for, and where it is.

Never decides: the tests and the steps are the operator's (docs/rollouts.md).
"""

from typing import Annotated, Literal

from pydantic import Field

from tuneloop_core.api.base import SpecModel, StatusModel, cel, rules
from tuneloop_core.api.formats import Decimal, Duration, Timestamp, decimal_rule

RolloutKind = Literal["Adapter", "Revision"]
RolloutPhase = Literal["Loading", "Canary", "Paused", "Held", "Promoting", "Promoted", "RolledBack"]

_Share = Annotated[
    Decimal,
    Field(json_schema_extra=rules(decimal_rule("double(self) <= 1.0", 'must be a share between "0" and "1"'))),
]
_Ratio = Annotated[
    Decimal,
    Field(json_schema_extra=rules(decimal_rule("double(self) >= 1.0", 'must be a ratio of at least "1"'))),
]


class CanaryLimits(SpecModel):
    """What a canary may be worse by, before it is rolled back: each is tested as docs/rollouts.md says."""

    error_rate: _Share = Field(
        default="0.02", description="Share of failed requests, if the version before has fewer of them."
    )
    ttft_ratio: _Ratio = Field(default="1.5", description="Its TTFT P95 over that of the version before.")
    tpot_ratio: _Ratio = Field(default="1.3", description="Its TPOT P95 over that of the version before.")
    feedback_drop: _Share = Field(default="0.1", description="Drop of the share of good feedback.")


class Canary(SpecModel):
    """A new version takes a growing share of the traffic."""

    model_config = {
        "json_schema_extra": rules(
            cel(
                "!has(self.steps) || (self.steps.isSorted() && self.steps.all(a, self.steps.exists_one(b, a == b)))",
                "steps must rise, such as [10, 50]: each a greater share of the traffic than the one before",
            )
        )
    }

    steps: list[Annotated[int, Field(ge=1, le=100)]] = Field(
        default=[10, 50],
        max_length=10,
        description="Shares of the traffic, percent, rising. After the last one the new version takes all of it.",
    )
    interval: Duration = Field(default="5m", description="The least time at each step.")
    min_requests: int = Field(
        default=50, ge=1, le=1_000_000, description="Requests that the canary must answer in a step to be judged."
    )
    max_duration: Duration = Field(
        default="1h", description="Time for the whole rollout, pauses aside; then it is rolled back."
    )
    on_no_traffic: Literal["Hold", "Promote", "Rollback"] = Field(
        default="Hold",
        description="When too few requests came in an interval: wait for more (until maxDuration), go on, or roll "
        "back.",
    )
    limits: CanaryLimits = Field(default=CanaryLimits(), description="When to roll back.")


class Rollout(SpecModel):
    """How a new version takes over."""

    model_config = {
        "json_schema_extra": rules(
            cel(
                "self.strategy == 'Canary' || (!has(self.canary) && (!has(self.pause) || !self.pause))",
                "canary and pause are for strategy Canary: set strategy: Canary, or leave them out",
            )
        )
    }

    strategy: Literal["RollingUpdate", "Canary", "Recreate"] = Field(
        default="RollingUpdate",
        description="RollingUpdate: a new version takes all traffic once it is ready, then the old one goes. Canary: "
        "it is loaded beside the old one, takes a growing share of the traffic, and is promoted or rolled back by what "
        "is measured. Recreate: the old pods go before the new ones come, where accelerators do not suffice for both.",
    )
    pause: bool = Field(
        default=False,
        description="Keeps a canary at its share of the traffic. A breach of its limits still rolls it back.",
    )
    canary: Canary | None = Field(default=None, description="For strategy Canary; left out it has the defaults.")


class ArmStatus(StatusModel):
    """What one version did since the step began."""

    requests: int = Field(default=0, ge=0, description="Requests that ended.")
    errors: int = Field(default=0, ge=0, description="Of them failed.")
    ttft_p95: str | None = Field(default=None, max_length=32, description="Time to first token, 95th percentile.")
    tpot_p95: str | None = Field(default=None, max_length=32, description="Time per output token, 95th percentile.")
    good_feedback: int = Field(default=0, ge=0, description="Scores of at least 0.5.")
    bad_feedback: int = Field(default=0, ge=0, description="Scores below it.")


class MeasuredStatus(StatusModel):
    """Both versions beside each other."""

    stable: ArmStatus = Field(default=ArmStatus(), description="The version that serves.")
    canary: ArmStatus = Field(default=ArmStatus(), description="The new one.")
    time: Timestamp | None = Field(default=None, description="When this was measured.")


class RolloutStatus(StatusModel):
    """The rollout in progress, or the last one."""

    kind: RolloutKind = Field(description="Of an adapter, or of a revision (model, engine, pods).")
    name: str = Field(max_length=63, description="The adapter's name, or the deployment's.")
    stable: str = Field(max_length=16, description="The version before: 12 digits of the digest, or rN.")
    canary: str = Field(max_length=16, description="The new version: 12 digits of the digest, or rN.")
    phase: RolloutPhase = Field(description="Where it is.")
    step: int = Field(default=0, ge=0, description="Of canary.steps, from 1; 0 before the first.")
    weight: int = Field(default=0, ge=0, le=100, description="Percent of the traffic that the new version gets.")
    started: Timestamp = Field(description="When it began.")
    since: Timestamp = Field(description="When the step or the phase began.")
    reason: str = Field(default="", max_length=64, description="Why it was rolled back; a constant.")
    message: str = Field(default="", max_length=1024, description="What is waited for, or what was found.")
    measured: MeasuredStatus | None = Field(default=None, description="Both versions in this step.")


class RejectedVersion(StatusModel):
    """A version that was rolled back: not tried again until the spec or the wanted version changes."""

    kind: RolloutKind = Field(description="Of an adapter, or of a revision.")
    name: str = Field(max_length=63, description="The adapter's name, or the deployment's.")
    version: str = Field(max_length=16, description="12 digits of the digest, or rN.")
    key: str = Field(max_length=80, description="Digest of the artifact, or of everything that makes the pods.")
    spec: str = Field(max_length=80, description="Digest of the part of the spec that asked for it.")
    reason: str = Field(max_length=64, description="Why; a constant.")
    message: str = Field(default="", max_length=512, description="What was found.")
    time: Timestamp = Field(description="When.")


class CanaryArm(StatusModel):
    """The share of a name's requests that goes to its new version: what the gateways split by."""

    engine_name: str = Field(default="", max_length=128, description="What the engine calls the new version.")
    revision: str = Field(
        default="", max_length=16, description="rN: the new version is these pods; empty: it is in every pod."
    )
    weight: int = Field(default=0, ge=0, le=100, description="Percent of the requests.")
