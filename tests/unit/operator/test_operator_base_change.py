"""What the revision that serves goes on with while another base or another maxRank is wanted: tables."""

from dataclasses import replace
from typing import Any

import pytest

from tuneloop_core.api.modeldeployment import ModelDeployment
from tuneloop_operator.policy.adapters import Resolved
from tuneloop_operator.policy.bases import Turn, arriving, held, turn_of
from tuneloop_operator.policy.candidates import Need
from tuneloop_operator.policy.revisions import BASE_ANNOTATION, MAX_RANK_ANNOTATION, Chosen
from tuneloop_operator.reconcile.rollouts import Look, beside

OLD, NEW = "hf://org/model@" + "a" * 40, "hf://org/model@" + "b" * 40
Obj = dict[str, Any]


def revision(base: str, ready: int = 1, rank: int | None = None) -> Obj:
    notes = ({BASE_ANNOTATION: base} if base else {}) | ({MAX_RANK_ANNOTATION: str(rank)} if rank else {})
    return {"metadata": {"annotations": notes}, "status": {"readyReplicas": ready}}


@pytest.mark.parametrize(
    ("found", "others", "wanted", "serves"),
    [
        ({1: revision(OLD)}, [1], Need(NEW, 16), Need(OLD, 16)),
        ({1: revision(OLD)}, [1], Need("", 16), Need(OLD, 16)),
        ({1: revision(OLD)}, [1], Need(OLD, 16), None),
        ({1: revision("")}, [1], Need(NEW, 16), None),
        ({1: revision(OLD), 2: revision(NEW, ready=0)}, [1, 2], Need("hf://org/model@" + "c" * 40, 16), Need(OLD, 16)),
        ({1: revision(OLD, rank=32)}, [1], Need(OLD, 16), Need(OLD, 32)),
        ({1: revision(OLD, rank=16)}, [1], Need(OLD, 16), None),
        ({1: revision(OLD, rank=8)}, [1], Need(NEW, 16), Need(OLD, 8)),
        ({}, [], Need(NEW, 16), None),
    ],
    ids=[
        "another base is wanted",
        "another base is fetched",
        "the same",
        "of an earlier operator",
        "one that answers",
        "less room for ranks",
        "the same room",
        "both",
        "none",
    ],
)
def test_what_the_revision_that_serves_takes(
    found: dict[int, Obj], others: list[int], wanted: Need, serves: Need | None
) -> None:
    assert turn_of(found, others, wanted) == (Turn(serves, wanted) if serves else None)


def deployment(**adapter: Any) -> ModelDeployment:
    spec = {"model": {"uri": "hf://org/model"}, "adapters": [{"name": "bot", "from": {"fineTuneJob": "second"}}]}
    status = {"adapters": [{"name": "bot", "digest": "sha256:1", "path": "artifacts/1", "state": "Ready", **adapter}]}
    metadata = {"name": "chat", "namespace": "team", "uid": "u", "generation": 1}
    kind = {"apiVersion": "tuneloop.dev/v1alpha1", "kind": "ModelDeployment", "metadata": metadata}
    return ModelDeployment.model_validate({**kind, "spec": spec, "status": status})


def digests(found: list[Resolved]) -> list[str]:
    return [item.wire.digest if item.wire else "" for item in found]


@pytest.mark.parametrize(
    ("before", "wanted", "digest"),
    [
        ({"engineName": "bot@1", "base": OLD}, Resolved("bot", "sha256:2", "artifacts/2", base=NEW), "sha256:1"),
        ({"engineName": "bot@1", "base": OLD}, Resolved("bot", reason="WrongBase", stalled=True), "sha256:1"),
        ({"base": OLD}, Resolved("bot", "sha256:2", "artifacts/2", base=NEW), ""),
        ({"base": OLD}, Resolved("bot", "sha256:2", "artifacts/2", base=OLD), "sha256:2"),
    ],
    ids=["what serves goes on", "also without a successor", "nothing served: the new one waits", "a new one that fits"],
)
def test_what_is_served_on_the_old_base(before: dict[str, str], wanted: Resolved, digest: str) -> None:
    turn = Turn(Need(OLD, 16), Need(NEW, 16))
    served = held([wanted], deployment(**before), turn)
    assert digests(served) == [digest]
    assert served[0].reason == wanted.reason or served[0].refused
    assert held([wanted], deployment(**before), None) == [wanted]


def test_each_revision_has_the_version_of_its_own_base() -> None:
    turn, wanted = Turn(Need(OLD, 16), Need(NEW, 16)), [Resolved("bot", "sha256:2", "artifacts/2", base=NEW)]
    served = held(wanted, deployment(engineName="bot@1", base=OLD), turn)
    there = arriving("r2", wanted, served, turn)
    assert there is not None
    assert (digests(served), [each.digest for each in there.adapters.adapters]) == (["sha256:1"], ["sha256:2"])
    assert arriving("r2", wanted, served, Turn(turn.old, Need("", 16))) is None


MISFIT = Resolved("bot", reason="AdapterMisfit", message="has rank 32", stalled=True)
WIDE = Resolved("bot", "sha256:2", "artifacts/2", base=OLD, rank=32)
SMALL = replace(WIDE, rank=8)
HAS: dict[str, Any] = {"engineName": "bot@1", "rank": 8}


@pytest.mark.parametrize(
    ("before", "wanted", "ranks", "old", "new"),
    [
        (HAS | {"rank": 32}, MISFIT, (32, 16), "sha256:1", None),
        ({}, WIDE, (16, 32), "", "sha256:2"),
        (HAS, WIDE, (16, 32), "sha256:1", "sha256:1"),
        (HAS, SMALL, (16, 32), "sha256:2", "sha256:2"),
        (HAS | {"base": ""}, replace(SMALL, base=""), (16, 8), "sha256:2", "sha256:2"),
    ],
    ids=[
        "too wide for the new: until that serves",
        "too wide for the old: waits",
        "too wide for the old, which serves another",
        "fits both: goes its own way",
        "of an unknown base: both have one",
    ],
)
def test_what_is_served_while_the_room_for_ranks_changes(
    before: dict[str, Any], wanted: Resolved, ranks: tuple[int, int], old: str, new: str | None
) -> None:
    turn = Turn(Need(OLD, ranks[0]), Need(OLD, ranks[1]))
    served = held([wanted], deployment(**{"base": OLD} | before), turn)
    assert digests(served) == [old]
    there = arriving("r2", [wanted], served, turn)
    assert there is not None
    assert [each.digest for each in there.adapters.adapters] == ([new] if new else [])


def test_one_that_is_too_wide_for_what_serves_says_when_it_comes() -> None:
    wanted = Resolved("bot", "sha256:2", "artifacts/2", base=OLD, rank=32)
    (found,) = held([wanted], deployment(), Turn(Need(OLD, 16), Need(OLD, 32)))
    assert (found.reason, found.stalled) == ("RollingOut", False)
    assert found.message == (
        "adapter bot: has rank 32, and what serves was started with engine.lora.maxRank 16; it is served when the new "
        "revision is"
    )


def test_a_revision_that_the_spec_was_set_back_from_keeps_what_fits_it() -> None:
    """r1 (32) serves with one of two pods, r2 (16) has one already: nothing is taken from r1, nor given to r2."""
    found = {1: revision(OLD, rank=32), 2: revision(OLD, rank=16)}
    both = [WIDE, replace(SMALL, name="small")]
    look = beside(Look(deployment(), both, found, Chosen(1, "server:1", "f", new=False), 2, OLD))
    assert (look.resolved, look.other) == (both, "r2")
    there = look.arriving(look.resolved)
    assert there is not None
    assert (there.revision, [each.name for each in there.adapters.adapters]) == ("r2", ["small"])
