"""A stored resource that this release's models refuse is told in words, and nothing else of it is touched."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from tuneloop_core.api import FineTuneJob, ModelDeployment
from tuneloop_operator.policy.published import judge_unreadable
from tuneloop_operator.policy.unreadable import status_of, words_of
from tuneloop_operator.policy.verdicts import State

NOW = datetime(2026, 1, 2, tzinfo=UTC)
BEFORE = "2026-01-01T00:00:00Z"
GOOD = {"model": {"uri": "hf://org/model"}, "dataset": {"uri": "hf://datasets/org/data"}}


def job(spec: dict[str, Any], **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "one", "namespace": "team", "generation": 3}, "spec": GOOD | spec, "status": status}


def fault(obj: dict[str, Any]) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        FineTuneJob.model_validate(obj)
    return caught.value


def condition(kind: str, status: str, reason: str = "Running") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": "m", "lastTransitionTime": BEFORE}


@pytest.mark.parametrize(
    ("obj", "reason", "words"),
    [
        (
            job({"retries": 10**6}),
            "InvalidSpec",
            ["spec.retries: Input should be less than or equal to", "found 1000000", "correct the spec"],
        ),
        (job({"speed": "high"}), "InvalidSpec", ["spec.speed: there is no such field; this release"]),
        (job({"model": {}}), "InvalidSpec", ["spec.model.uri: is missing and required"]),
        (
            job({}, stages=[{"name": "train", "state": "Dreaming"}]),
            "InvalidStatus",
            ["status.stages.0.state", "'Dreaming'"],
        ),
        (job({f"x{n}": n for n in range(5)}), "InvalidSpec", ["spec.x2: there is no such field; and 2 more; this"]),
        (job({"retries": "y" * 5000}), "InvalidSpec", ["found 'yyyy", "…; this release"]),
    ],
)
def test_words_name_the_field_what_was_found_and_what_to_do(obj: dict[str, Any], reason: str, words: list[str]) -> None:
    said, message = words_of(fault(obj))
    assert said == reason
    for part in words:
        assert part in message
    assert len(message) < 600


def test_the_condition_is_about_this_generation_and_the_rest_stays() -> None:
    stored = [condition("Ready", "False"), condition("Reconciling", "True"), condition("ModelFetched", "True")]
    obj = job({"retries": -1}, stage="Training", observedGeneration=2, conditions=stored)
    status = status_of(obj, fault(obj), NOW)
    assert (status["stage"], status["observedGeneration"]) == ("Training", 3)
    ready, stalled, other = status["conditions"]
    assert (ready["type"], ready["status"], ready["lastTransitionTime"]) == ("Ready", "False", BEFORE)
    assert (stalled["type"], stalled["status"], stalled["reason"]) == ("Stalled", "True", "InvalidSpec")
    assert (stalled["observedGeneration"], stalled["lastTransitionTime"]) == (3, "2026-01-02T00:00:00Z")
    assert other == stored[2]
    again = obj | {"status": status}
    assert status_of(again, fault(again), datetime(2026, 5, 5, tzinfo=UTC)) == status, "a second look writes nothing"


def test_a_condition_that_cannot_be_read_keeps_nothing_from_being_told() -> None:
    obj = job({"retries": -1}, conditions=[{"type": "Stalled", "status": "Perhaps"}])
    assert [item["type"] for item in status_of(obj, fault(obj), NOW)["conditions"]] == ["Ready", "Stalled"]


@pytest.mark.parametrize("kind", ["Complete", "Failed"])
def test_a_job_that_has_ended_stays_so(kind: str) -> None:
    obj = job({"retries": -1}, conditions=[condition(kind, "True")])
    assert status_of(obj, fault(obj), NOW) == obj["status"]


def test_a_model_of_a_job_that_cannot_be_read_is_served_on() -> None:
    found = {"metadata": {"name": "chat", "namespace": "team"}, "spec": {"model": {"fineTuneJob": "one"}}}
    new = judge_unreadable(ModelDeployment.model_validate(found), "InvalidSpec", "spec.retries: too many", ())
    assert (new.verdict.state, new.verdict.reason) == (State.STALLED, "InvalidSpec")
    assert new.verdict.message == "FineTuneJob one: spec.retries: too many"
    model = {"uri": "finetunejob://one@sha256:abc", "commit": "sha256:abc", "path": "artifacts/abc", "bytes": 1}
    served = ModelDeployment.model_validate(found | {"status": {"model": model}})
    assert judge_unreadable(served, "InvalidSpec", "spec.retries: too many", ()).verdict.state is State.DONE
