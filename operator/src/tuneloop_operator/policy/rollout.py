"""One rollout, step by step: Loading, then a growing share of the traffic, then Promoted or RolledBack.

The state is ``status.rollout`` and nothing else, so an operator that restarts goes on where it was. In come two
versions (the one that serves, the one that is wanted), what was measured of both since the step began, and what people
ask for by hand; out comes the next state. Pure: it neither loads nor routes, and never chooses which version is wanted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from tuneloop_core.api.formats import format_latency, parse_duration
from tuneloop_core.api.rollout import (
    ArmStatus,
    Canary,
    MeasuredStatus,
    Rollout,
    RolloutKind,
    RolloutPhase,
    RolloutStatus,
)
from tuneloop_operator.policy.arms import TAIL, Arm, Breach, breaches
from tuneloop_operator.policy.conditions import cut, parse_time, timestamp
from tuneloop_operator.policy.latency import quantile

LOAD_FAILED: Final = "CanaryNotLoaded"
BY_HAND: Final = "RolledBackByHand"
WITHDRAWN: Final = "SpecSetBack"
TIMED_OUT: Final = "RolloutTimedOut"
NO_TRAFFIC: Final = "TooFewRequests"
BREACHED: Final = {"errors": "ErrorRate", "ttft": "TTFT", "tpot": "TPOT", "feedback": "Feedback"}
"""Reasons of ``status.rollout`` and ``status.rejected``."""

ENDED: Final[tuple[RolloutPhase, ...]] = ("Promoted", "RolledBack")
MEASURED_SECONDS: Final = 10.0  # between writes of what is measured while nothing else changes


@dataclass(frozen=True)
class Version:
    """One version of an adapter or a revision."""

    kind: RolloutKind
    name: str  # the adapter's, or the deployment's
    id: str  # what people name: 12 digits of the digest, or rN
    key: str  # what is remembered: the digest, or the revision's fingerprint


@dataclass(frozen=True)
class Orders:
    """What people ask for by hand: the pause of the spec, versions in annotations."""

    pause: bool = False
    promote: str = ""
    rollback: str = ""


@dataclass(frozen=True)
class Seen:
    """What is known of the canary, and what was measured since the step began."""

    ready: bool = False  # loaded in every pod, or all of its own pods answer
    full: bool = True  # it could take all of the traffic now
    idle: bool = False  # no replica is wanted now: nothing can be loaded or measured
    failure: str = ""  # why it will never be ready, in words
    waits_for: str = ""  # why it is not ready yet, in words
    stable: Arm = field(default_factory=Arm)
    canary: Arm = field(default_factory=Arm)


def begin(stable: Version, canary: Version, now: datetime) -> RolloutStatus:
    """A rollout that has just begun: the canary is being loaded and takes no traffic."""
    moment = timestamp(now)
    return RolloutStatus(
        kind=canary.kind, name=canary.name, stable=stable.id, canary=canary.id, phase="Loading", started=moment,
        since=moment, message=f"{canary.id} is loaded beside {stable.id}",
    )  # fmt: skip


def is_of(status: RolloutStatus | None, stable: Version, canary: Version) -> bool:
    """Whether a rollout is the one between these two versions."""
    wanted = (canary.kind, canary.name, stable.id, canary.id)
    return status is not None and (status.kind, status.name, status.stable, status.canary) == wanted


def advance(spec: Rollout, before: RolloutStatus, seen: Seen, orders: Orders, now: datetime) -> RolloutStatus:
    """The next state of a rollout in progress; the first of these that applies."""
    canary = spec.canary or Canary()
    after = (
        _by_hand(before, seen, orders, now)
        or _lost(canary, before, seen, orders, now)
        or _halted(before, seen, orders, now)
        or _onward(canary, before, seen, now)
    )
    if after.phase in ENDED:
        return after.model_copy(update={"measured": measured_status(seen, timestamp(now))})
    if after.step != before.step:
        return after.model_copy(update={"measured": None})
    return _measured(after, before, seen, now)


def withdrawn(before: RolloutStatus, why: str, now: datetime) -> RolloutStatus:
    """The spec asks for it no longer: the canary takes no traffic from now on, and nothing is held against it."""
    words = f"{before.canary} was withdrawn, {before.stable} serves: {why}"
    fields = {"phase": "RolledBack", "weight": 0, "since": timestamp(now), "reason": WITHDRAWN, "message": words}
    return before.model_copy(update=fields)


def _by_hand(before: RolloutStatus, seen: Seen, orders: Orders, now: datetime) -> RolloutStatus | None:
    if orders.rollback == before.canary:
        return _rolled_back(before, BY_HAND, "rolled back by hand (annotation tuneloop.dev/rollback)", now)
    if orders.promote != before.canary or not seen.ready:
        return None
    return _promote(before, seen, "promoted by hand (annotation tuneloop.dev/promote)", now)


def _lost(canary: Canary, before: RolloutStatus, seen: Seen, orders: Orders, now: datetime) -> RolloutStatus | None:
    """What ends it badly, in whatever step it is."""
    if seen.failure:
        return _rolled_back(before, LOAD_FAILED, seen.failure, now)
    found = _breaches(canary, before, seen)
    if found:
        return _rolled_back(before, BREACHED[found[0].measure], "; ".join(each.message for each in found), now)
    halted = before.phase == "Paused" or orders.pause or seen.idle
    if not halted and _age(before.started, now) > parse_duration(canary.max_duration):
        words = f"it was not promoted within maxDuration {canary.max_duration}: {before.message}"
        return _rolled_back(before, TIMED_OUT, words, now)
    return None


def _breaches(canary: Canary, before: RolloutStatus, seen: Seen) -> Sequence[Breach]:
    if before.step == 0 or seen.canary.requests < canary.min_requests:
        return ()
    return breaches(seen.stable, seen.canary, canary.limits)


def _halted(before: RolloutStatus, seen: Seen, orders: Orders, now: datetime) -> RolloutStatus | None:
    if not orders.pause and not seen.idle:
        return None
    since = before.since if before.phase == "Paused" else timestamp(now)
    why = "no replica is wanted now" if seen.idle else "by spec.rollout.pause"
    fields = {"phase": "Paused", "since": since, "message": f"paused at {before.weight} %: {why}"}
    return before.model_copy(update=fields)


def _onward(canary: Canary, before: RolloutStatus, seen: Seen, now: datetime) -> RolloutStatus:
    if before.phase == "Paused":
        before = _resumed(before, now)
    if before.phase == "Promoting":
        return _promote(before, seen, before.message, now)
    if before.step == 0 and not seen.ready:
        return _loading(before, seen)
    if before.step == 0:
        return _step(canary, before, seen, 1, now)
    left = parse_duration(canary.interval) - _age(before.since, now)
    if left > 0:
        return _stay(before, "Canary", f"{_where(canary, before)}; {_judged(canary, seen)}")
    if seen.canary.requests >= canary.min_requests or canary.on_no_traffic == "Promote":
        return _step(canary, before, seen, before.step + 1, now)
    return _starved(canary, before, seen, now)


def _starved(canary: Canary, before: RolloutStatus, seen: Seen, now: datetime) -> RolloutStatus:
    """The interval is over, and too few requests came."""
    words = f"{_judged(canary, seen)} within interval {canary.interval}"
    if canary.on_no_traffic == "Rollback":
        return _rolled_back(before, NO_TRAFFIC, f"{words}, and onNoTraffic is Rollback", now)
    return _stay(before, "Held", f"{_where(canary, before)}; {words}; it is held until they came")


def _resumed(before: RolloutStatus, now: datetime) -> RolloutStatus:
    """The interval begins anew, and the pause does not count towards maxDuration."""
    started = parse_time(before.started) + timedelta(seconds=_age(before.since, now))
    fields = {"phase": "Canary" if before.step else "Loading", "started": timestamp(started), "since": timestamp(now)}
    return before.model_copy(update=fields)


def _loading(before: RolloutStatus, seen: Seen) -> RolloutStatus:
    words = f"{before.canary} is loaded beside {before.stable}"
    return before.model_copy(update={"phase": "Loading", "message": cut(f"{words}: {seen.waits_for}".rstrip(": "))})


def _step(canary: Canary, before: RolloutStatus, seen: Seen, step: int, now: datetime) -> RolloutStatus:
    if step > len(canary.steps):
        return _promote(before, seen, f"{before.canary} was within its limits at every step", now)
    fields = {"phase": "Canary", "step": step, "weight": canary.steps[step - 1], "since": timestamp(now)}
    after = before.model_copy(update=fields)
    return after.model_copy(update={"message": _where(canary, after)})


def _promote(before: RolloutStatus, seen: Seen, why: str, now: datetime) -> RolloutStatus:
    """It takes all of the traffic as soon as it can; until then it keeps its share."""
    phase: RolloutPhase = "Promoted" if seen.full else "Promoting"
    since = before.since if before.phase == phase else timestamp(now)
    weight = 100 if seen.full else before.weight
    return before.model_copy(update={"phase": phase, "weight": weight, "since": since, "message": cut(why)})


def _stay(before: RolloutStatus, phase: RolloutPhase, message: str) -> RolloutStatus:
    """The same step; what is measured goes on."""
    return before.model_copy(update={"phase": phase, "message": cut(message)})


def _rolled_back(before: RolloutStatus, reason: str, why: str, now: datetime) -> RolloutStatus:
    words = f"{before.canary} was rolled back, {before.stable} serves: {why}"
    fields = {"phase": "RolledBack", "weight": 0, "since": timestamp(now), "reason": reason, "message": cut(words)}
    return before.model_copy(update=fields)


def _where(canary: Canary, at: RolloutStatus) -> str:
    return f"step {at.step} of {len(canary.steps)}: {at.canary} gets {at.weight} % for at least {canary.interval}"


def _judged(canary: Canary, seen: Seen) -> str:
    return f"{seen.canary.requests} of the {canary.min_requests} requests that a judgement needs have come"


def _age(since: str, now: datetime) -> float:
    return (now - parse_time(since)).total_seconds()


def _measured(after: RolloutStatus, before: RolloutStatus, seen: Seen, now: datetime) -> RolloutStatus:
    """What is measured changes all the time; it is written, with its words, every ten seconds at most."""
    last = before.measured.time if before.measured else None
    found = measured_status(seen, last)
    if found == before.measured or (not seen.canary.requests and not seen.stable.requests):
        return after
    if last and _age(last, now) < MEASURED_SECONDS:
        return after.model_copy(update={"message": before.message})
    return after.model_copy(update={"measured": found.model_copy(update={"time": timestamp(now)})})


def measured_status(seen: Seen, moment: str | None) -> MeasuredStatus:
    """Both arms as the status tells them."""
    return MeasuredStatus(stable=arm_status(seen.stable), canary=arm_status(seen.canary), time=moment)


def arm_status(arm: Arm) -> ArmStatus:
    """An arm as the status tells it."""
    ttft, tpot = (quantile(TAIL, each) if each else None for each in (arm.ttft, arm.tpot))
    return ArmStatus(
        requests=arm.requests,
        errors=arm.errors,
        ttft_p95=format_latency(ttft) if ttft is not None else None,
        tpot_p95=format_latency(tpot) if tpot is not None else None,
        good_feedback=arm.good,
        bad_feedback=arm.bad,
    )
