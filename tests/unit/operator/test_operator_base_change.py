"""Which base serves while another one is wanted, and which adapters go on being served on it: a table."""

from typing import Any

import pytest

from tuneloop_core.api.modeldeployment import ModelDeployment
from tuneloop_operator.policy.adapters import Resolved
from tuneloop_operator.policy.bases import held, serving_base
from tuneloop_operator.policy.revisions import BASE_ANNOTATION

OLD, NEW = "hf://org/model@" + "a" * 40, "hf://org/model@" + "b" * 40
Obj = dict[str, Any]


def revision(base: str, ready: int = 1) -> Obj:
    return {"metadata": {"annotations": {BASE_ANNOTATION: base} if base else {}}, "status": {"readyReplicas": ready}}


@pytest.mark.parametrize(
    ("found", "others", "wanted", "serves"),
    [
        ({1: revision(OLD)}, [1], NEW, OLD),
        ({1: revision(OLD)}, [1], "", OLD),
        ({1: revision(OLD)}, [1], OLD, ""),
        ({1: revision("")}, [1], NEW, ""),
        ({1: revision(OLD), 2: revision(NEW, ready=0)}, [1, 2], "hf://org/model@" + "c" * 40, OLD),
        ({}, [], NEW, ""),
    ],
    ids=["another is wanted", "another is fetched", "the same", "of an earlier operator", "one that answers", "none"],
)
def test_the_base_that_serves(found: dict[int, Obj], others: list[int], wanted: str, serves: str) -> None:
    assert serving_base(found, others, wanted) == serves


def deployment(**adapter: str) -> ModelDeployment:
    spec = {"model": {"uri": "hf://org/model"}, "adapters": [{"name": "bot", "from": {"fineTuneJob": "second"}}]}
    status = {"adapters": [{"name": "bot", "digest": "sha256:1", "path": "artifacts/1", "state": "Ready", **adapter}]}
    metadata = {"name": "chat", "namespace": "team", "uid": "u", "generation": 1}
    kind = {"apiVersion": "tuneloop.dev/v1alpha1", "kind": "ModelDeployment", "metadata": metadata}
    return ModelDeployment.model_validate({**kind, "spec": spec, "status": status})


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
    (found,) = held([wanted], deployment(**before), OLD)
    assert (found.wire.digest if found.wire else "") == digest
    assert found.reason == wanted.reason or found.refused
    assert held([wanted], deployment(**before), "") == [wanted]
