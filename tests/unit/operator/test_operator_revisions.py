"""Which revisions there should be: a version is made by what the spec says, and by nothing else."""

import pytest
from serving_facts import MODEL, Obj, deployment, k8s_deployment, revision

from tuneloop_core.api.rollout import RolloutStatus
from tuneloop_operator.policy import revisions

HERE: dict[int, Obj] = {1: {}}  # the Deployments that there are, by number


def test_revisions_change_with_the_spec_and_not_with_the_operator() -> None:
    first = revisions.choose(deployment(), [], {}, MODEL.path, "server:1")
    assert (first.number, first.image, first.new) == (1, "server:1", True)
    same = revisions.choose(deployment(), [revision()], HERE, MODEL.path, "server:2")
    assert (same.number, same.image, same.new) == (1, "server:1", False)
    other = revisions.choose(deployment(engine={"maxModelLength": 64}), [revision()], HERE, MODEL.path, "server:2")
    assert (other.number, other.image, other.new) == (2, "server:2", True)
    moved = revisions.choose(deployment(), [revision()], HERE, "models/o/m/def", "server:2")
    assert moved.number == 2
    more = deployment(adapters=[], scaling={"minReplicas": 3})
    assert not revisions.choose(more, [revision()], HERE, MODEL.path, "server:2").new


STRATEGIES = ("RollingUpdate", "Recreate", "Canary")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("there", "engine", "number", "new"),
    [
        pytest.param((1,), {}, 1, False, id="the spec came back, r2 has gone"),
        pytest.param((1, 2), {}, 1, False, id="the spec came back, r2 is there"),
        pytest.param((1, 2), {"maxModelLength": 64}, 2, False, id="r2 is wanted"),
        pytest.param((1,), {"maxModelLength": 64}, 2, False, id="r2 is wanted again"),
        pytest.param((1,), {"maxModelLength": 65}, 3, True, id="a third"),
    ],
)
def test_how_a_version_takes_over_never_makes_one(
    strategy: str, there: tuple[int, ...], engine: Obj, number: int, *, new: bool
) -> None:
    """r2 was rolled back: it is remembered also where its Deployment has gone."""
    other = revisions.fingerprint(deployment(engine={"maxModelLength": 64}), "server:1", MODEL.path)
    known = [revision(name="r2", hash=other), revision()]
    wanted = deployment(engine=engine, rollout={"strategy": strategy})
    found = revisions.choose(wanted, known, {name: {} for name in there}, MODEL.path, "server:2")
    assert (found.number, found.new) == (number, new)


def test_the_old_revision_goes_when_the_new_one_is_ready() -> None:
    chosen = revisions.Chosen(2, "server:1", "f", new=False)
    found = {1: k8s_deployment(1, 1), 2: k8s_deployment(2, 0)}
    assert revisions.obsolete(found, chosen, 1) == []
    assert revisions.obsolete(found | {2: k8s_deployment(2, 1)}, chosen, 1) == [1]
    assert revisions.obsolete(found | {2: k8s_deployment(2, 1, generation=2)}, chosen, 1) == [], "its status is old"


@pytest.mark.parametrize(
    ("first", "second", "replicas", "going"),
    [
        pytest.param(1, 0, 1, [2], id="the wanted one answers"),
        pytest.param(0, 0, 1, [2], id="neither does: the newer one only has the room"),
        pytest.param(0, 1, 1, [], id="only the newer one does, until the wanted one"),
        pytest.param(1, 1, 1, [2], id="both do"),
        pytest.param(0, 0, 0, [2], id="asleep"),
    ],
)
def test_what_goes_where_the_spec_was_set_back(first: int, second: int, replicas: int, going: list[int]) -> None:
    back = revisions.Chosen(1, "server:1", "f", new=False)
    found = {1: k8s_deployment(1, first, replicas), 2: k8s_deployment(2, second, replicas)}
    assert revisions.obsolete(found, back, replicas) == going


def test_what_has_not_answered_before_all_went_to_sleep_does_not_take_the_old_ones_place() -> None:
    chosen = revisions.Chosen(2, "server:1", "f", new=False)
    asleep = {1: k8s_deployment(1, 0, replicas=0), 2: k8s_deployment(2, 0, replicas=0)}
    assert revisions.obsolete(asleep, chosen, 0) == []
    assert revisions.sizes(chosen, [1], 0) == {1: 0, 2: 0}
    assert revisions.sizes(chosen, [1], 3) == {1: 3, 2: 3}, "they wake together"
    assert revisions.obsolete({1: asleep[1]}, chosen, 0) == [1], "made while nothing runs, it is the only one"


def test_known_revisions_are_what_is_there_and_the_newest_that_vanished() -> None:
    there = revisions.known([revision()], {1: k8s_deployment(1, 1), 2: k8s_deployment(2, 0)})
    assert [item.name for item in there] == ["r2", "r1"]
    vanished = revisions.known([revision(name="r3")], {1: k8s_deployment(1, 1)})
    assert [(item.name, item.ready) for item in vanished] == [("r3", False), ("r1", True)]


def test_foreign_and_leaving_deployments_do_not_count() -> None:
    foreign = k8s_deployment(1, 1)
    foreign["metadata"]["ownerReferences"] = []
    leaving = k8s_deployment(2, 1)
    leaving["metadata"]["deletionTimestamp"] = "x"
    assert revisions.by_number([foreign, leaving, k8s_deployment(3, 1)], "owner").keys() == {3}


@pytest.mark.parametrize(
    ("phase", "there", "serves"),
    [
        pytest.param("", [1], 1, id="there is one"),
        pytest.param("", [1, 2], 2, id="without a canary: the newest"),
        pytest.param("Canary", [1, 2], 1, id="never a canary"),
        pytest.param("RolledBack", [1, 2], 1, id="nor one that was rolled back"),
        pytest.param("Promoted", [1, 2], 2, id="one that was promoted"),
        pytest.param("Canary", [2], 2, id="unless there is no other"),
        pytest.param("", [], None, id="none"),
    ],
)
def test_what_serves_while_another_model_is_fetched(phase: str, there: list[int], serves: int | None) -> None:
    known = [revision(name=f"r{number}", hash=f"f{number}") for number in (2, 1)]
    between = {"kind": "Revision", "name": "chat", "stable": "r1", "canary": "r2", "phase": phase}
    began = {"started": "2026-11-23T11:00:00Z", "since": "2026-11-23T11:00:00Z"}
    status = RolloutStatus.model_validate(between | began) if phase else None
    found = revisions.meanwhile(status, known, {number: k8s_deployment(number, 1) for number in there})
    assert found == (revisions.Chosen(serves, "server:1", f"f{serves}", new=False) if serves else None)
