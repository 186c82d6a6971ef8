"""The state machine of one rollout, by a table of transitions; times are seconds since the rollout began."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tuneloop_core.api.rollout import Rollout, RolloutStatus
from tuneloop_operator.policy import rollout
from tuneloop_operator.policy.arms import Arm
from tuneloop_operator.policy.conditions import timestamp
from tuneloop_operator.policy.rollout import Orders, Seen, Version

BEGAN = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
OLD = Version("Adapter", "bot", "a" * 12, "sha256:" + "a" * 64)
NEW = Version("Adapter", "bot", "b" * 12, "sha256:" + "b" * 64)
ENOUGH = Arm(requests=60)
FAILING = Arm(requests=60, errors=30)


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def state(phase: str = "Canary", step: int = 1, since: float = 0, **more: Any) -> RolloutStatus:
    fields = {"phase": phase, "step": step, "since": timestamp(at(since))}
    if step:
        fields["weight"] = (10, 50)[step - 1]
    return rollout.begin(OLD, NEW, BEGAN).model_copy(update=fields | more)


def spec(**canary: Any) -> Rollout:
    return Rollout(strategy="Canary", canary={"interval": "1m", "maxDuration": "10m"} | canary)


def seen(canary: Arm | None = None, **more: Any) -> Seen:
    return Seen(**{"ready": True, "stable": Arm(requests=500), "canary": canary or Arm()} | more)


CASES: list[Any] = [
    # from, what is seen, when, -> phase, step, weight, reason
    pytest.param(state("Loading", 0), seen(ready=False), 5, ("Loading", 0, 0, ""), id="loading"),
    pytest.param(state("Loading", 0), seen(), 5, ("Canary", 1, 10, ""), id="loaded"),
    pytest.param(
        state("Loading", 0), seen(failure="rank 64"), 5, ("RolledBack", 0, 0, "CanaryNotLoaded"), id="does not load"
    ),
    pytest.param(
        state("Loading", 0), seen(ready=False), 601, ("RolledBack", 0, 0, "RolloutTimedOut"), id="never loads"
    ),
    pytest.param(state("Loading", 0), seen(idle=True, ready=False), 601, ("Paused", 0, 0, ""), id="no replica: waits"),
    pytest.param(state(), seen(ENOUGH), 30, ("Canary", 1, 10, ""), id="within the interval"),
    pytest.param(state(), seen(ENOUGH), 61, ("Canary", 2, 50, ""), id="next step"),
    pytest.param(state(), seen(Arm(requests=49)), 61, ("Held", 1, 10, ""), id="too few requests: held"),
    pytest.param(state("Held"), seen(ENOUGH), 200, ("Canary", 2, 50, ""), id="held until enough came"),
    pytest.param(state("Held"), seen(), 601, ("RolledBack", 1, 0, "RolloutTimedOut"), id="held too long"),
    pytest.param(state(step=2), seen(ENOUGH), 61, ("Promoted", 2, 100, ""), id="the end"),
    pytest.param(state(step=2), seen(ENOUGH, full=False), 61, ("Promoting", 2, 50, ""), id="the end, not yet full"),
    pytest.param(state("Promoting", 2), seen(full=False), 61, ("Promoting", 2, 50, ""), id="filling up"),
    pytest.param(state("Promoting", 2), seen(), 61, ("Promoted", 2, 100, ""), id="full"),
    pytest.param(state(), seen(FAILING), 1, ("RolledBack", 1, 0, "ErrorRate"), id="errors roll back at once"),
    pytest.param(
        state(), seen(Arm(requests=49, errors=49)), 1, ("Canary", 1, 10, ""), id="no judgement before minRequests"
    ),
    pytest.param(
        state(),
        seen(Arm(60, good=2, bad=20), stable=Arm(500, good=90, bad=10)),
        1,
        ("RolledBack", 1, 0, "Feedback"),
        id="feedback drops",
    ),
]


@pytest.mark.parametrize(("before", "look", "when", "after"), CASES)
def test_transitions(before: RolloutStatus, look: Seen, when: float, after: tuple[str, int, int, str]) -> None:
    found = rollout.advance(spec(), before, look, Orders(), at(when))
    assert (found.phase, found.step, found.weight, found.reason) == after
    assert found.message


@pytest.mark.parametrize(("policy", "phase"), [("Hold", "Held"), ("Promote", "Canary"), ("Rollback", "RolledBack")])
def test_on_no_traffic(policy: str, phase: str) -> None:
    found = rollout.advance(spec(onNoTraffic=policy), state(), seen(), Orders(), at(61))
    assert found.phase == phase
    assert found.step == (2 if policy == "Promote" else 1)


def test_no_steps_promote_what_has_loaded() -> None:
    found = rollout.advance(spec(steps=[]), state("Loading", 0), seen(), Orders(), at(1))
    assert (found.phase, found.weight) == ("Promoted", 100)


def test_by_hand() -> None:
    loading, running = state("Loading", 0), state()
    promote, back = Orders(promote=NEW.id), Orders(rollback=NEW.id)
    assert rollout.advance(spec(), running, seen(), promote, at(1)).phase == "Promoted"
    assert rollout.advance(spec(), loading, seen(ready=False), promote, at(1)).phase == "Loading"
    assert rollout.advance(spec(), running, seen(), Orders(promote="c" * 12), at(1)).phase == "Canary"
    found = rollout.advance(spec(), running, seen(), back, at(1))
    assert (found.phase, found.reason, found.weight) == ("RolledBack", "RolledBackByHand", 0)
    assert (
        rollout.advance(spec(), running, seen(), Orders(promote=NEW.id, rollback=NEW.id), at(1)).phase == "RolledBack"
    )


def test_a_pause_stops_the_clock_but_not_the_rollback() -> None:
    paused = rollout.advance(spec(), state(), seen(ENOUGH), Orders(pause=True), at(30))
    assert (paused.phase, paused.weight, paused.message) == ("Paused", 10, "paused at 10 %: by spec.rollout.pause")
    later = rollout.advance(spec(), paused, seen(ENOUGH), Orders(pause=True), at(5000))
    assert later.phase == "Paused"
    assert rollout.advance(spec(), later, seen(FAILING), Orders(pause=True), at(5001)).phase == "RolledBack"
    resumed = rollout.advance(spec(), later, seen(ENOUGH), Orders(), at(5000))
    assert (resumed.phase, resumed.step, resumed.weight) == ("Canary", 1, 10)
    assert resumed.started == timestamp(at(4970)), "4970 seconds of pause are not counted"
    assert rollout.advance(spec(), resumed, seen(ENOUGH), Orders(), at(5061)).step == 2


def test_what_is_measured_is_written_every_ten_seconds_at_most() -> None:
    first = rollout.advance(spec(), state(), seen(Arm(requests=5)), Orders(), at(1))
    assert first.measured is not None
    assert (first.measured.canary.requests, first.measured.time) == (5, timestamp(at(1)))
    assert rollout.advance(spec(), first, seen(Arm(requests=6)), Orders(), at(5)) == first
    second = rollout.advance(spec(), first, seen(Arm(requests=7)), Orders(), at(11))
    assert second.measured is not None
    assert second.measured.canary.requests == 7
    assert rollout.advance(spec(), second, seen(ENOUGH), Orders(), at(61)).measured is None, "a new step begins"


def test_what_ended_it_stays_in_the_status() -> None:
    found = rollout.advance(spec(), state(), seen(FAILING), Orders(), at(1))
    assert found.measured is not None
    assert found.measured.canary.errors == 30
    assert found.message == (
        f"{NEW.id} was rolled back, {OLD.id} serves: 30 of 60 requests failed, with the version before 0 of 500; "
        "limits.errorRate is 0.02"
    )
