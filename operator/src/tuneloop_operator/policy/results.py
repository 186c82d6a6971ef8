"""What a finished stage puts into the status of a FineTuneJob.

Pure; a result that does not parse raises ValidationError.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from tuneloop_core.api.finetunejob import FineTuneJob
from tuneloop_core.api.finetunejob_status import (
    ArtifactStatus,
    CheckpointStatus,
    CurvePoint,
    DatasetStatus,
    EvaluationStatus,
    FineTuneJobStatus,
    GateStatus,
    ModelStatus,
    NoticeStatus,
    ProgressStatus,
    ScoresStatus,
)
from tuneloop_core.gates import judge
from tuneloop_core.stages import (
    CheckResult,
    FetchResult,
    Notice,
    PublishResult,
    Scores,
    Stage,
    Termination,
    TrainResult,
)
from tuneloop_core.uris import shown
from tuneloop_operator.policy import usage

Fields = dict[str, Any]

CURVE_POINTS = 16


def absorb(stage: Stage, job: FineTuneJob, said: Termination, pods: Sequence[Fields], now: datetime) -> Fields:
    """Status fields that the stage's result sets; ``pods`` are those of the stage that are still there."""
    result = said.result or {}
    absorbers: dict[Stage, Callable[[], Fields]] = {
        Stage.FETCH: lambda: _fetched(job, FetchResult.model_validate(result)),
        Stage.CHECK: lambda: _checked(job, CheckResult.model_validate(result)),
        Stage.TRAIN: lambda: _trained(job, TrainResult.model_validate(result), pods, now),
        Stage.PUBLISH: lambda: _published(job, PublishResult.model_validate(result)),
    }
    return absorbers[stage]()


def words(stage: Stage, status: FineTuneJobStatus) -> str:
    """What a finished stage did, in one line for Events and conditions."""
    model, dataset, scores = status.model, status.dataset, status.evaluation
    if stage is Stage.FETCH and model and dataset:
        rows = f"{dataset.uri} with {dataset.validation_uri}" if dataset.validation_uri else dataset.uri
        return f"{model.uri} ({_megabytes(model.bytes)}) and {rows} ({_megabytes(dataset.bytes)}) are in the store"
    if stage is Stage.CHECK and dataset:
        held = f"{dataset.train_rows} to train on, {dataset.validation_rows} held out"
        rows = f"{dataset.rows} rows ({dataset.format}), {held}"
        leaks = f"; {dataset.leaked_rows} held-out rows ask what training rows ask" if dataset.leaked_rows else ""
        return f"{rows}; {dataset.train_tokens} training tokens, {dataset.truncated_rows} rows cut{leaks}"
    if stage is Stage.TRAIN and scores and scores.base and scores.tuned and status.progress:
        base, tuned = scores.base.eval_loss, scores.tuned.eval_loss
        losses = f"evalLoss {base:g} before and {tuned:g} after, " if base is not None and tuned is not None else ""
        return f"{losses}{status.progress.total_steps} steps, {len(scores.gates)} gates passed"
    if stage is Stage.PUBLISH and status.artifact:
        return (
            f"published {status.artifact.digest[:19]} ({_megabytes(status.artifact.bytes)}) to {status.artifact.path}"
        )
    return f"{stage.value} succeeded"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _fetched(job: FineTuneJob, found: FetchResult) -> Fields:
    model = ModelStatus(
        uri=found.model_uri,
        commit=found.model_commit,
        path=found.model_path,
        bytes=found.model_bytes,
        shape=found.shape,
    )
    dataset = DatasetStatus(
        uri=shown(job.spec.dataset.uri),
        validation_uri=shown(job.spec.dataset.validation.uri or ""),
        digest=found.dataset_digest,
        path=found.dataset_path,
        bytes=found.dataset_bytes,
    )
    return {"model": model, "dataset": dataset}


def _checked(job: FineTuneJob, found: CheckResult) -> Fields:
    known = job.status.dataset or DatasetStatus()
    return {"dataset": known.model_copy(update=found.model_dump())}


def _trained(job: FineTuneJob, found: TrainResult, pods: Sequence[Fields], now: datetime) -> Fields:
    verdicts = judge(job.spec.evaluation.gates, found.base, found.tuned)
    gates = [GateStatus(**verdict.model_dump()) for verdict in verdicts]
    checkpoint = job.status.checkpoint
    if found.checkpoint_time:
        checkpoint = CheckpointStatus(step=found.steps, time=found.checkpoint_time, best_step=found.best_step)
    return {
        "evaluation": EvaluationStatus(base=_scores(found.base), tuned=_scores(found.tuned), gates=gates),
        "curve": curve(found.curve),
        "resumes": found.resumes,
        "notices": notices(found.notices),
        "checkpoint": checkpoint,
        "progress": ProgressStatus(
            phase="Done",
            step=found.steps,
            total_steps=found.steps,
            percent=100,
            loss=round(found.final_loss, 4),
            tokens_per_second=round(found.tokens_per_second, 1),
        ),
        "usage": usage.measured(job, pods, now, found.seconds, found.peak_memory_bytes),
    }


def curve(points: Sequence[tuple[int, float]]) -> list[CurvePoint]:
    """At most 16 points, first and last among them: ``describe`` gives each two lines, metrics.jsonl has all."""
    last = len(points) - 1
    kept = (
        points if last < CURVE_POINTS else [points[round(n * last / (CURVE_POINTS - 1))] for n in range(CURVE_POINTS)]
    )
    return [CurvePoint(step=step, loss=round(loss, 4)) for step, loss in kept]


def notices(found: Iterable[Notice]) -> list[NoticeStatus]:
    """What training met and dealt with, for the status."""
    return [NoticeStatus(reason=each.reason.value, message=each.message) for each in found][-4:]


def _scores(found: Scores) -> ScoresStatus:
    rounded = {
        name: round(value, 4) if isinstance(value, float) else value for name, value in found.model_dump().items()
    }
    return ScoresStatus(**rounded | {"tasks": {name: round(value, 4) for name, value in found.tasks.items()}})


def _published(job: FineTuneJob, found: PublishResult) -> Fields:
    artifact = ArtifactStatus(
        kind=found.kind, uri=found.exported_uri, digest=found.digest, path=found.path, bytes=found.bytes
    )
    return {"artifact": artifact, "notices": [*job.status.notices, *notices(found.notices)][-4:]}


def fetch_result(status: FineTuneJobStatus) -> FetchResult | None:
    """What fetch found, as the status remembers it: later stages need it when fetch's Job is long gone."""
    model, dataset = status.model, status.dataset
    if model is None or dataset is None or not model.path:
        return None
    return FetchResult(
        model_uri=model.uri,
        model_path=model.path,
        model_commit=model.commit,
        model_bytes=model.bytes,
        dataset_path=dataset.path,
        dataset_digest=dataset.digest,
        dataset_bytes=dataset.bytes,
    )
