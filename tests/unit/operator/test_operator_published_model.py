"""A ModelDeployment whose base model a FineTuneJob publishes: what is served, what is waited for, what is refused."""

from typing import Any

from tuneloop_core.api import ArtifactStatus, Condition, FineTuneJob, FineTuneJobStatus, ModelDeployment, ModelStatus
from tuneloop_core.constants import MODEL_FOLDER
from tuneloop_operator.policy import reasons
from tuneloop_operator.policy.published import judge_published
from tuneloop_operator.policy.revisions import BASE_ANNOTATION, SOURCE_ANNOTATION, fingerprint, source_of
from tuneloop_operator.policy.verdicts import State

DIGEST = "sha256:" + "d" * 64
SERVED = ModelStatus(uri=f"finetunejob://one@{DIGEST}", commit=DIGEST, path="artifacts/" + "d" * 64, bytes=7)


def deployment(job: str = "one", model: ModelStatus | None = None) -> ModelDeployment:
    metadata = {"name": "chat", "namespace": "team", "uid": "owner", "generation": 1}
    made = ModelDeployment.model_validate({"metadata": metadata, "spec": {"model": {"fineTuneJob": job}}})
    return made.model_copy(update={"status": made.status.model_copy(update={"model": model})})


def job(kind: str = "", conditions: list[Condition] | None = None, **status: Any) -> FineTuneJob:
    spec = {"model": {"uri": "hf://o/m"}, "dataset": {"uri": "hf://datasets/o/d"}}
    made = FineTuneJob.model_validate({"metadata": {"name": "one"}, "spec": spec})
    artifact = {"kind": kind, "digest": DIGEST, "path": SERVED.path, "bytes": 7} if kind else None
    filled = FineTuneJobStatus(
        conditions=conditions or [], artifact=ArtifactStatus.model_validate(artifact) if artifact else None, **status
    )
    return made.model_copy(update={"status": filled})


def test_a_published_model_is_served_from_where_it_lies() -> None:
    found = judge_published(deployment(), job("Model"), ())
    assert found.verdict.state is State.DONE
    assert found.model == SERVED


def test_a_version_outlives_its_job_but_not_another_jobs_name() -> None:
    assert judge_published(deployment(model=SERVED), None, ()).model == SERVED
    other = judge_published(deployment("two", SERVED), None, ())
    assert (other.model, other.verdict.reason) == (None, reasons.WAITING_FOR_JOB)
    assert other.verdict.message == "waiting for FineTuneJob two: there is none of that name in this namespace"


def revision_of(source: str, model: ModelStatus) -> dict[str, Any]:
    notes = {SOURCE_ANNOTATION: source, BASE_ANNOTATION: model.uri}
    mounts = [{"mountPath": MODEL_FOLDER, "subPath": model.path}]
    return {
        "metadata": {"annotations": notes},
        "spec": {"template": {"spec": {"containers": [{"volumeMounts": mounts}]}}},
    }


def test_a_spec_set_back_to_a_job_that_is_gone_takes_what_its_revision_serves() -> None:
    other = ModelStatus(uri=f"finetunejob://two@{DIGEST}", commit=DIGEST, path="artifacts/two")
    served = [revision_of("finetunejob://two", other), revision_of("finetunejob://one", SERVED)]
    found = judge_published(deployment(model=other), None, served)
    assert (found.verdict.state, found.model) == (State.DONE, SERVED.model_copy(update={"bytes": 0}))
    assert judge_published(deployment(model=other), None, served[:1]).verdict.reason == reasons.WAITING_FOR_JOB


def test_a_fetched_model_is_not_taken_for_the_jobs() -> None:
    fetched = ModelStatus(uri="hf://o/m@abc", commit="abc", path="models/o/m/abc")
    assert judge_published(deployment(model=fetched), None, ()).model is None


def test_an_unfinished_job_is_waited_for() -> None:
    found = judge_published(deployment(), job(stage="Training"), ())
    assert found.verdict.message == "waiting for FineTuneJob one (Training)"
    assert found.verdict.state is State.PENDING


def test_a_failed_job_stalls() -> None:
    why = Condition(type="Failed", status="True", last_transition_time="x", reason="GateFailed", message="missed by 1")
    found = judge_published(deployment(), job(conditions=[why]), ())
    assert found.verdict.state is State.STALLED
    assert found.verdict.message.startswith("FineTuneJob one failed (GateFailed: missed by 1). Name another job")


def test_an_adapter_is_refused_with_the_way_to_serve_it() -> None:
    found = judge_published(deployment(), job("Adapter", model=ModelStatus(uri="hf://o/m@abc")), ())
    assert found.verdict.reason == reasons.WRONG_ARTIFACT
    assert "model.uri hf://o/m and adapters: [{name: one, from: {fineTuneJob: one}}]" in found.verdict.message


def test_a_classifier_is_served_as_any_whole_model() -> None:
    found = job("Model")
    method = found.spec.method.model_copy(update={"task": "SequenceClassification"})
    made = found.model_copy(update={"spec": found.spec.model_copy(update={"method": method})})
    assert judge_published(deployment(), made, ()).model == SERVED


def test_another_artifact_is_another_revision() -> None:
    assert source_of(deployment()) == "finetunejob://one"
    prints = {fingerprint(deployment(), "image", path) for path in (SERVED.path, "artifacts/" + "e" * 64)}
    assert len(prints) == 2
