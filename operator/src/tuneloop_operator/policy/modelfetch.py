"""The base model of a ModelDeployment.

Fetched once for what the user asked for, by the same stage as in a FineTuneJob. Pure.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from tuneloop_core.api.finetunejob_status import ModelStatus, StageStatus
from tuneloop_core.api.modeldeployment import ModelDeployment
from tuneloop_core.constants import GROUP, MODEL_FOLDER
from tuneloop_core.stages import FetchResult, Stage
from tuneloop_operator.names import owner_uids
from tuneloop_operator.policy import conditions, reasons
from tuneloop_operator.policy.actions import DeleteJob
from tuneloop_operator.policy.pods import condition
from tuneloop_operator.policy.revisions import BASE_ANNOTATION, SOURCE_ANNOTATION, annotation, source_of
from tuneloop_operator.policy.verdicts import Case, StageFacts, State, Verdict, invalid_result, judge

Obj = dict[str, Any]

ATTEMPT_ANNOTATION = f"{GROUP}/attempt"
"""On the fetch Job: which try it is, so that waits grow without a place in the status."""


@dataclass(frozen=True)
class ModelFacts:
    """What the cluster knows of the base model; ``served`` are the revisions' Deployments, newest first."""

    now: datetime
    fetch: StageFacts
    served: Sequence[Obj] = ()


@dataclass(frozen=True)
class ModelVerdict:
    """Where the model is, once it is there."""

    verdict: Verdict
    model: ModelStatus | None = None


def judge_model(deployment: ModelDeployment, facts: ModelFacts) -> ModelVerdict:
    """DONE with the model, or where its fetch Job stands and what to do about it."""
    source = source_of(deployment)
    known = _known(deployment.status.model, facts, source)
    if known is not None:
        return ModelVerdict(Verdict(State.DONE, reasons.SUCCEEDED, f"{known.uri} is in the store"), known)
    job = facts.fetch.job
    if job is not None and not job["metadata"].get("deletionTimestamp") and deployment.metadata.uid in owner_uids(job):
        recorded = annotation(job, SOURCE_ANNOTATION)
        if recorded and recorded != source:
            delete = DeleteJob(Stage.FETCH, job["metadata"]["name"], job["metadata"]["uid"])
            return ModelVerdict(Verdict(State.PENDING, reasons.CREATED, "another model is asked for", (delete,)))
    stalled = next((item for item in deployment.status.conditions if item.type == conditions.STALLED), None)
    previous = stage_before(job, (stalled.reason, stalled.message) if stalled is not None else None)
    case = Case(Stage.FETCH, previous, facts.fetch, deployment.metadata.uid, suspend=False, retries=0, now=facts.now)
    return _with_model(judge(case))


def attempt(job: Obj) -> int:
    """Which try a fetch Job is."""
    text = annotation(job, ATTEMPT_ANNOTATION)
    return int(text) if text.isdigit() else 1


def _known(status: ModelStatus | None, facts: ModelFacts, source: str) -> ModelStatus | None:
    """The model that is in the store for what is asked now: a revision's that was made for it, else the status's."""
    if found := served_model(facts.served, source, status):
        return found
    others = any(annotation(each, SOURCE_ANNOTATION) not in ("", source) for each in facts.served)
    return status if status is not None and status.path and not others and _is_for(status, facts, source) else None


def served_model(served: Sequence[Obj], source: str, status: ModelStatus | None) -> ModelStatus | None:
    """What the newest revision serves that was made for this source (``served``: newest first), if there is one.

    The status may be of another one, whose spec was set back; where it is of this one it knows more.
    """
    made = next((each for each in served if annotation(each, SOURCE_ANNOTATION) == source), None)
    uri = annotation(made, BASE_ANNOTATION) if made else ""
    if made is None or not uri:
        return None
    if status is not None and status.path and status.uri == uri:
        return status
    mounts = made["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    path = next(mount["subPath"] for mount in mounts if mount["mountPath"] == MODEL_FOLDER)
    return ModelStatus(uri=uri, commit=uri.rpartition("@")[2], path=path)


def _is_for(known: ModelStatus, facts: ModelFacts, source: str) -> bool:
    """Whether the known model is what is asked for now: by the record on the fetch Job, else by its repository."""
    job = facts.fetch.job
    if job is not None and annotation(job, SOURCE_ANNOTATION):
        return annotation(job, SOURCE_ANNOTATION) == source
    digest = re.match(r"oci://[^@]+@(sha256:[0-9a-f]{64})@", source)
    if digest and digest[1] != known.commit:
        return False
    return known.uri.partition("@")[0] == source.partition("@")[0]


def stage_before(job: Obj | None, told: tuple[str, str] | None) -> StageStatus:
    """The stage's past, read from the Job itself and from what the status tells of an earlier failure."""
    stage = Stage.FETCH.value
    if job is None:
        return StageStatus(name=stage, state="Pending")
    failed = condition(job, "Failed")
    if failed is not None and failed.get("status") == "True":
        return StageStatus(
            name=stage,
            state="Failed",
            attempts=attempt(job),
            job_uid=job["metadata"]["uid"],
            finish_time=failed.get("lastTransitionTime"),
        )
    if attempt(job) > 1 and told is not None:
        return StageStatus(name=stage, state="Failed", reason=told[0], message=told[1])
    return StageStatus(name=stage, state="Pending")


def _with_model(verdict: Verdict) -> ModelVerdict:
    if verdict.state is not State.DONE or verdict.said is None:
        return ModelVerdict(verdict)
    try:
        found = FetchResult.model_validate(verdict.said.result)
    except ValidationError as error:
        return ModelVerdict(invalid_result(Stage.FETCH, error))
    model = ModelStatus(uri=found.model_uri, commit=found.model_commit, path=found.model_path, bytes=found.model_bytes)
    return ModelVerdict(verdict, model)
