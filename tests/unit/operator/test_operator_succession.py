"""Which revision serves while another is wanted under strategy Canary, whatever became of the spec meanwhile."""

from typing import Any

import pytest
from serving_facts import NOW, deployment, k8s_deployment

from tuneloop_core.api.rollout import RolloutStatus
from tuneloop_operator.policy import rollout, succession
from tuneloop_operator.policy.revisions import Chosen

Obj = dict[str, Any]
BEGAN = "2026-11-23T11:00:00Z"


def state(phase: str) -> Obj:
    fields = {"kind": "Revision", "name": "chat", "stable": "r1", "canary": "r2", "phase": phase, "weight": 10}
    return {"rollout": fields | {"step": 1, "started": BEGAN, "since": BEGAN}}


@pytest.mark.parametrize(
    ("phase", "there", "wanted", "serves"),
    [
        pytest.param("", (1,), 1, None, id="there is one"),
        pytest.param("", (1,), 2, 1, id="a second is wanted"),
        pytest.param("Canary", (1, 2), 2, 1, id="it takes a share"),
        pytest.param(
            "Canary", (1, 2), 1, None, id="the spec is set back meanwhile: the canary never becomes what serves"
        ),
        pytest.param("Paused", (1, 2), 1, None, id="set back while paused"),
        pytest.param("Loading", (1, 2), 3, 1, id="a third is wanted, the second has proven nothing"),
        pytest.param("Canary", (1, 2, 3), 3, 1, id="a third is there"),
        pytest.param("RolledBack", (1, 2), 2, 1, id="rolled back, still wanted"),
        pytest.param("RolledBack", (1, 2), 1, None, id="rolled back, set back, not yet gone"),
        pytest.param("RolledBack", (1,), 3, 1, id="rolled back, another is wanted"),
        pytest.param("Promoted", (1, 2), 2, None, id="promoted"),
        pytest.param("Promoted", (2,), 3, 2, id="promoted, another is wanted"),
        pytest.param("Promoted", (1, 2), 1, 2, id="promoted, and set back before the old one was gone"),
    ],
)
def test_which_serves(phase: str, there: tuple[int, ...], wanted: int, serves: int | None) -> None:
    """All that are there answer."""
    made = deployment(state(phase) if phase else {}, rollout={"strategy": "Canary"})
    found = {number: k8s_deployment(number, 1) for number in there}
    pair = succession.pair_of(made, found, Chosen(wanted, "server:1", f"f{wanted}", new=wanted not in there))
    assert (pair.stable.id if pair else None) == (f"r{serves}" if serves else None)
    assert pair is None or pair.canary.id == f"r{wanted}"


def test_what_is_withdrawn_takes_no_traffic_and_is_not_held_against_it() -> None:
    before = RolloutStatus.model_validate(state("Canary")["rollout"])
    found = rollout.withdrawn(before, "the spec was set back", NOW)
    assert (found.phase, found.weight, found.reason) == ("RolledBack", 0, "SpecSetBack")
    assert found.message == "r2 was withdrawn, r1 serves: the spec was set back"
    assert found.since == "2026-11-23T12:00:00Z"


@pytest.mark.parametrize(
    ("phase", "wanted", "there", "found"),
    [
        pytest.param("Canary", 1, ["r1", "r2"], "SpecSetBack", id="set back: it ends now"),
        pytest.param("Paused", 1, ["r1"], "SpecSetBack", id="set back while paused"),
        pytest.param("RolledBack", 1, ["r1", "r2"], "", id="as long as something of it is there"),
        pytest.param("RolledBack", 1, ["r1"], None, id="gone"),
        pytest.param("Canary", 2, ["r1", "r2"], None, id="still wanted"),
        pytest.param("Loading", 3, ["r1", "r2"], None, id="a third is wanted: that begins anew"),
        pytest.param("Promoted", 1, ["r1", "r2"], None, id="promoted"),
    ],
)
def test_what_is_no_longer_wanted_is_withdrawn(phase: str, wanted: int, there: list[str], found: str | None) -> None:
    known = RolloutStatus.model_validate(state(phase)["rollout"])
    chosen = Chosen(wanted, "server:1", "f", new=False)
    told = succession.withdrawal(known, chosen, there, "the spec was set back", NOW)
    assert (told.reason if told else None) == found
    assert told is None or (told.phase, told.stable) == ("RolledBack", "r1")


def test_no_revision_is_withdrawn_where_none_is_rolled_out() -> None:
    chosen = Chosen(1, "server:1", "f", new=False)
    adapter = RolloutStatus.model_validate(state("Canary")["rollout"] | {"kind": "Adapter", "stable": "r1"})
    for known in (None, adapter):
        assert succession.withdrawal(known, chosen, ["r1", "r2"], "why", NOW) is None
