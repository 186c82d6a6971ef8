"""The end of an adapter's canary, also of one that is no longer wanted: tables.

The gateways send it its share until they have heard; so it stays loaded for a while, and nothing else begins.
"""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from serving_facts import NOW, deployment

from tuneloop_core.api.modeldeployment_status import ServedName
from tuneloop_core.api.rollout import RolloutStatus
from tuneloop_operator.policy import course, versions
from tuneloop_operator.policy.adapters import Resolved, wanted_list
from tuneloop_operator.policy.conditions import timestamp
from tuneloop_operator.policy.course import Course

Obj = dict[str, Any]
CANARY = {"rollout": {"strategy": "Canary"}}
A, B = "a" * 12, "b" * 12


def version(letter: str, **more: Any) -> Resolved:
    return Resolved("bot", f"sha256:{letter * 64}", f"artifacts/{letter * 64}", **more)


def state(phase: str, age: float = 60, **more: Any) -> Obj:
    """The rollout of bot from a to b."""
    moment = timestamp(NOW - timedelta(seconds=age))
    fields = {"kind": "Adapter", "name": "bot", "stable": A, "canary": B, "phase": phase, "weight": 10}
    return {**fields, "started": moment, "since": moment, **more}


def leaving(rollout: Obj | None, *resolved: Resolved) -> RolloutStatus | None:
    known = {"name": "bot", "digest": version("a").digest, "path": version("a").path, "state": "Ready"}
    made = deployment({"adapters": [known | {"engineName": f"bot@{A}"}], "rollout": rollout}, **CANARY)
    return versions.leaving(made, resolved, versions.adapter_pairs(resolved, made), NOW)


WAITS = version("a", reason="WaitingForFineTuneJob", message="waiting for FineTuneJob three")


@pytest.mark.parametrize("phase", ["Loading", "Canary", "Held", "Paused"])
@pytest.mark.parametrize("wanted", [version("a"), version("c"), WAITS], ids=["set back", "a third", "waits for one"])
def test_what_is_no_longer_wanted_is_withdrawn(phase: str, wanted: Resolved) -> None:
    found = leaving(state(phase), wanted)
    assert found is not None
    assert (found.phase, found.reason, found.weight, found.since) == ("RolledBack", "SpecSetBack", 0, timestamp(NOW))
    assert found.message == f"{B} was withdrawn, {A} serves: it is no longer wanted in its place"
    (note,) = course.notes(RolloutStatus.model_validate(state(phase)), found)
    assert (note.reason, note.message, note.warning) == ("SpecSetBack", f"bot: {found.message}", False)


@pytest.mark.parametrize(
    ("rollout", "resolved"),
    [
        (None, [version("b")]),
        (state("Canary"), [version("b")]),
        (state("Canary"), []),
        (state("Canary"), [version("a", refused=True)]),
        (state("Canary", stable="c" * 12), [version("a")]),
        (state("Canary", kind="Revision", name="chat", stable="r1", canary="r2"), [version("a")]),
        (state("RolledBack", 15), [version("c")]),
    ],
    ids=[
        "none",
        "it is still wanted",
        "the adapter was removed",
        "its name belongs to another",
        "another version serves by now",
        "a revision's",
        "it ended before that while",
    ],
)
def test_what_does_not_leave(rollout: Obj | None, resolved: list[Resolved]) -> None:
    assert leaving(rollout, *resolved) is None


@pytest.mark.parametrize("phase", ["RolledBack", "Promoted"])
def test_what_has_just_ended_is_left_alone(phase: str) -> None:
    for wanted in (version("a"), version("b"), version("c")):
        assert leaving(state(phase, 14), wanted) == RolloutStatus.model_validate(state(phase, 14))


@pytest.mark.parametrize(("age", "letters"), [(0, "ab"), (14, "ab"), (15, "a")])
def test_it_stays_loaded_for_a_while_and_gets_nothing(age: float, letters: str) -> None:
    withdrawn = leaving(state("Canary"), version("a"))
    assert withdrawn is not None
    there = wanted_list([version("a"), version("b")])
    found = versions.loaded([version("a")], None, there, withdrawn, NOW + timedelta(seconds=age))
    assert [each.engine_name for each in found.adapters] == [f"bot@{letter * 12}" for letter in letters]
    (model,) = course.with_canary(
        [ServedName(name="bot", engine_name=f"bot@{A}", kind="Adapter")], Course(status=withdrawn)
    )
    assert model.canary is None


def test_what_is_wanted_next_waits_for_that() -> None:
    made = deployment({"adapters": []}, **CANARY)
    pair = versions.Pair(versions.Version("Adapter", "two", A, "a"), versions.Version("Adapter", "two", B, "b"))
    chosen = versions.choose(made, [pair])
    assert (chosen.pair, chosen.waiting) == (pair, ())
    assert chosen.waits() == replace(chosen, pair=None, waiting=(pair,))
    assert chosen.waits().waits() == chosen.waits()
