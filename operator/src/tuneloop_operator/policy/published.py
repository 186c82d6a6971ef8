"""The base model of a ModelDeployment that serves what a FineTuneJob published as a whole model.

Nothing is fetched: the artifact already lies in the namespace's store. As with adapters, a version that was resolved
outlives its job. Pure.
"""

from collections.abc import Sequence
from typing import Any

from tuneloop_core.api.finetunejob import FineTuneJob
from tuneloop_core.api.finetunejob_status import ArtifactStatus, ModelStatus
from tuneloop_core.api.modeldeployment import ModelDeployment
from tuneloop_operator.policy import conditions, reasons
from tuneloop_operator.policy.conditions import cut
from tuneloop_operator.policy.modelfetch import ModelVerdict, served_model
from tuneloop_operator.policy.revisions import source_of
from tuneloop_operator.policy.verdicts import State, Verdict

Obj = dict[str, Any]


def judge_published(deployment: ModelDeployment, job: FineTuneJob | None, served: Sequence[Obj]) -> ModelVerdict:
    """DONE with the artifact as the model; else why not yet, or never.

    ``job`` is None when there is none; ``served`` are the revisions' Deployments, newest first.
    """
    name, known = deployment.spec.model.fine_tune_job or "", _known(deployment, served)
    if job is None:
        if known is not None:  # the job may go once its artifact is served
            return _done(known)
        return _waits(f"waiting for FineTuneJob {name}: there is none of that name in this namespace")
    why = next((item for item in job.status.conditions if item.type == conditions.FAILED), None)
    if why is not None and why.status == "True":
        words = f"{why.reason}: {cut(why.message, 500)}"
        message = f"FineTuneJob {name} failed ({words}). Name another job in model.fineTuneJob"
        return _stalls(reasons.FINETUNEJOB_FAILED, message)
    artifact = job.status.artifact
    if artifact is None:
        return _waits(f"waiting for FineTuneJob {name} ({job.status.stage or 'not begun'})")
    wrong = _wrong(name, job, artifact)
    return _stalls(reasons.WRONG_ARTIFACT, wrong) if wrong else _done(_model(deployment, artifact))


def judge_unreadable(deployment: ModelDeployment, reason: str, words: str, served: Sequence[Obj]) -> ModelVerdict:
    """What a job that this release cannot read means: a version resolved before is served on."""
    known = _known(deployment, served)
    return _done(known) if known else _stalls(reason, f"FineTuneJob {deployment.spec.model.fine_tune_job}: {words}")


def _wrong(name: str, job: FineTuneJob, artifact: ArtifactStatus) -> str:
    """Why an artifact cannot be served as the base, and what to do; empty where it can."""
    if artifact.kind != "Model":
        base = job.status.model.uri.partition("@")[0] if job.status.model else job.spec.model.uri
        return (
            f"FineTuneJob {name} published an adapter, not a whole model. Serve it over its base: model.uri {base} and "
            f"adapters: [{{name: {name}, from: {{fineTuneJob: {name}}}}}], or train it with method.merge: true"
        )
    return ""


def _known(deployment: ModelDeployment, served: Sequence[Obj]) -> ModelStatus | None:
    """The version resolved before, if it is of the job that is asked for now: a revision's, else the status's."""
    known = deployment.status.model
    if found := served_model(served, source_of(deployment), known):
        return found
    return known if known and known.path and known.uri.partition("@")[0] == _uri(deployment) else None


def _model(deployment: ModelDeployment, artifact: ArtifactStatus) -> ModelStatus:
    uri = f"{_uri(deployment)}@{artifact.digest}"
    return ModelStatus(uri=uri, commit=artifact.digest, path=artifact.path, bytes=artifact.bytes)


def _uri(deployment: ModelDeployment) -> str:
    return source_of(deployment).partition("@")[0]


def _done(model: ModelStatus) -> ModelVerdict:
    return ModelVerdict(Verdict(State.DONE, reasons.SUCCEEDED, f"{model.uri} is in the store"), model)


def _waits(message: str) -> ModelVerdict:
    return ModelVerdict(Verdict(State.PENDING, reasons.WAITING_FOR_JOB, message))


def _stalls(reason: str, message: str) -> ModelVerdict:
    return ModelVerdict(Verdict(State.STALLED, reason, message))
