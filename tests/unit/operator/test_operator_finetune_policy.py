"""Decisions on a FineTuneJob, without a cluster."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from operator_world import CHECKED, FETCHED, PUBLISHED, TRAINED

from tuneloop_core.api import FineTuneJob, FineTuneJobStatus
from tuneloop_core.constants import LABEL_COMPONENT
from tuneloop_core.stages import Progress, Stage
from tuneloop_operator.policy import reasons, results
from tuneloop_operator.policy.actions import CreateStage, DeleteJob, PatchJob
from tuneloop_operator.policy.finetune import Decision, JobFacts, decide
from tuneloop_operator.policy.transitions import condition_notes, stage_notes
from tuneloop_operator.policy.verdicts import StageFacts, needs_events, retry_seconds

Obj = dict[str, Any]
NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
RESULTS = {"fetch": FETCHED, "check": CHECKED, "train": TRAINED, "publish": PUBLISHED}


def job(status: FineTuneJobStatus | None = None, **spec: Any) -> FineTuneJob:
    body = {
        "model": {"uri": "hf://o/m"},
        "dataset": {"uri": "hf://datasets/o/d"},
        "resources": {"accelerators": 1},
    } | spec
    made = FineTuneJob.model_validate(
        {"metadata": {"name": "one", "namespace": "team", "uid": "owner", "generation": 1}, "spec": body}
    )
    return made.model_copy(update={"status": status or FineTuneJobStatus()})


def k8s_job(stage: str, *conditions: Obj, uid: str = "j1", owner: str = "owner", **more: Any) -> Obj:
    return {
        "metadata": {
            "name": f"one-{stage}",
            "uid": uid,
            "labels": {},
            "ownerReferences": [{"uid": owner}],
            "creationTimestamp": "2026-11-23T11:59:58Z",
        },
        "spec": {"backoffLimit": 3, "suspend": False} | more,
        "status": {"conditions": list(conditions), "completionTime": "2026-11-23T11:59:50Z", "failed": 1},
    }


def condition(kind: str, **more: Any) -> Obj:
    return {"type": kind, "status": "True"} | more


def ended_pod(stage: str, said: Obj | None, code: int = 0, **status: Any) -> Obj:
    message = json.dumps({"stage": stage} | said) if said else ""
    ended = {
        "exitCode": code,
        "message": message,
        "startedAt": "2026-11-23T11:00:00Z",
        "finishedAt": "2026-11-23T11:01:00Z",
    }
    return {
        "metadata": {"name": "p", "uid": "p", "labels": {}, "creationTimestamp": "2026-11-23T11:00:00Z"},
        "spec": {"containers": [{"name": "main", "resources": {"limits": {"memory": "3Gi"}}}]},
        "status": {"phase": "Failed" if code else "Succeeded", "containerStatuses": [{"state": {"terminated": ended}}]}
        | status,
    }


def succeeded(stage: str) -> StageFacts:
    said = {"outcome": "Succeeded", "result": RESULTS[stage]}
    return StageFacts(k8s_job(stage, condition("Complete")), (ended_pod(stage, said),))


def failed(stage: str, reason: str = "DatasetInvalid", uid: str = "j1") -> StageFacts:
    said = {"outcome": "Failed", "reason": reason, "message": "line 3 is no JSON"}
    return StageFacts(
        k8s_job(stage, condition("Failed", reason="PodFailurePolicy"), uid=uid), (ended_pod(stage, said, 42),)
    )


def look(made: FineTuneJob, stages: dict[Stage, StageFacts] | None = None, **facts: Any) -> Decision:
    return decide(made, JobFacts(**{"now": NOW, "stages": stages or {}} | facts))


def after(*stages: Stage, **spec: Any) -> FineTuneJob:
    """A job of which these stages are done."""
    status = look(job(**spec), {stage: succeeded(stage.value) for stage in stages if stage is not Stage.PLAN}).status
    return job(status, **spec)


def types(status: FineTuneJobStatus) -> dict[str, str]:
    return {item.type: item.reason for item in status.conditions if item.status == "True"}


def test_begins_with_fetch() -> None:
    decision = look(job())
    assert decision.actions == (CreateStage(Stage.FETCH),)
    assert types(decision.status) == {"Reconciling": reasons.CREATED}
    assert decision.status.observed_generation == 1


def test_results_are_kept_and_the_plan_needs_no_pod() -> None:
    status = after(Stage.FETCH, Stage.CHECK).status
    assert status.model is not None
    assert status.model.path == FETCHED["modelPath"]
    assert status.dataset is not None
    assert (status.dataset.digest, status.dataset.train_tokens) == (FETCHED["datasetDigest"], 50000)
    assert status.plan is not None
    assert status.plan.steps == 12  # ceil(50000 / 16384) x 3
    assert [stage.state for stage in status.stages] == ["Succeeded"] * 3 + ["Pending"] * 2


def test_a_done_stage_whose_job_vanished_is_not_run_again() -> None:
    assert look(after(Stage.FETCH, Stage.CHECK)).actions == (CreateStage(Stage.TRAIN),)


def test_complete() -> None:
    status = after(Stage.FETCH, Stage.CHECK, Stage.TRAIN, Stage.PUBLISH).status
    assert types(status).keys() >= {"Ready", "Complete", "Published"}
    assert not types(status).keys() & {"Reconciling", "Stalled", "Failed"}
    assert status.stage == "Succeeded"
    assert status.usage is not None
    assert status.usage.accelerator_seconds == 100.0
    assert look(job(status)).status is status, "a finished job is left alone"


def test_a_user_error_stalls_and_is_tried_again_with_growing_waits() -> None:
    first = look(job(), {Stage.FETCH: failed("fetch")})
    assert types(first.status) == {"Stalled": "DatasetInvalid"}
    assert first.look_again == 30
    assert first.status.stages[0].attempts == 1
    assert not first.actions
    later = NOW + timedelta(seconds=31)
    second = look(job(first.status), {Stage.FETCH: failed("fetch")}, now=later)
    assert second.actions == (DeleteJob(Stage.FETCH, "one-fetch", "j1"),)
    assert look(job(first.status), {}, now=later).actions == (CreateStage(Stage.FETCH),)
    retrying = look(job(first.status), {Stage.FETCH: StageFacts(k8s_job("fetch", uid="j2"))}, now=later)
    assert types(retrying.status) == {"Stalled": "DatasetInvalid"}, "stalled until it goes well"
    again = look(job(retrying.status), {Stage.FETCH: failed("fetch", uid="j2")}, now=later)
    assert again.status.stages[0].attempts == 2
    assert again.look_again == 60
    healed = look(job(again.status), {Stage.FETCH: succeeded("fetch")}, now=later)
    assert "Stalled" not in types(healed.status)


def test_waits_are_capped() -> None:
    assert [retry_seconds(n) for n in (1, 2, 5, 6, 100)] == [30, 60, 480, 600, 600]


@pytest.mark.parametrize(
    ("reason", "words", "not_said"),
    [
        ("LossNaN", "the spec is fixed: change it in a new job, name it -v2", "spec.retries"),
        ("LossSpike", "the spec is fixed", "spec.retries"),
        ("ModelUnsupported", "the spec is fixed", "spec.retries"),
        ("OutOfMemory", "the spec is fixed", "spec.retries"),
        ("StepTimeout", "raise spec.retries above", "the spec is fixed"),
        ("StoreFull", "raise spec.retries above", "the spec is fixed"),
    ],
)
def test_a_training_error_is_final_and_says_what_helps(reason: str, words: str, not_said: str) -> None:
    made = after(Stage.FETCH, Stage.CHECK)
    status = look(made, {Stage.TRAIN: failed("train", reason)}).status
    assert types(status).keys() >= {"Failed", "Stalled"}
    assert types(status)["Failed"] == reason
    assert status.stage == "Failed"
    message = next(item.message for item in status.conditions if item.type == "Failed")
    assert words in message
    assert not_said not in message


@pytest.mark.parametrize(
    ("pod", "reason", "words"),
    [
        (ended_pod("train", None, 137), reasons.RETRIES_EXHAUSTED, "exit code 137"),
        (
            {
                "metadata": {"creationTimestamp": "x", "labels": {LABEL_COMPONENT: "train"}},
                "spec": {"containers": [{"name": "main", "resources": {"limits": {"memory": "3Gi"}}}]},
                "status": {
                    "phase": "Failed",
                    "containerStatuses": [{"state": {"terminated": {"reason": "OOMKilled"}}}],
                },
            },
            reasons.OOM_KILLED,
            "(limit 3Gi). Lower training.maxSequenceLength",
        ),
        (
            ended_pod("train", None, 1, reason="DeadlineExceeded"),
            reasons.DEADLINE_EXCEEDED,
            "raise training.maxDuration",
        ),
        (ended_pod("train", None, 1, reason="Evicted", message="low on memory"), reasons.EVICTED, "low on memory"),
    ],
)
def test_how_training_ended(pod: Obj, reason: str, words: str) -> None:
    facts = StageFacts(k8s_job("train", condition("Failed", reason="BackoffLimitExceeded")), (pod,))
    status = look(after(Stage.FETCH, Stage.CHECK), {Stage.TRAIN: facts}).status
    assert types(status)["Failed"] == reason
    assert words in next(item.message for item in status.conditions if item.type == "Failed")


def test_a_missed_gate_says_by_how_much() -> None:
    gates = {"evaluation": {"gates": [{"metric": "evalLoss", "max": "2.0"}]}}
    status = after(Stage.FETCH, Stage.CHECK, Stage.TRAIN, **gates).status
    assert types(status)["Failed"] == reasons.GATE_FAILED
    message = next(item.message for item in status.conditions if item.type == "Failed")
    assert "missed by 0.5" in message
    assert status.evaluation is not None
    assert not status.evaluation.gates[0].passed


def test_a_message_that_is_missing_runs_the_stage_again() -> None:
    silent = StageFacts(k8s_job("fetch", condition("Complete")), (ended_pod("fetch", None),))
    assert look(job(), {Stage.FETCH: silent}).actions == (DeleteJob(Stage.FETCH, "one-fetch", "j1"),)
    early = NOW - timedelta(seconds=8)
    assert look(job(), {Stage.FETCH: silent}, now=early).look_again == 3.0


def test_a_result_that_does_not_parse_stalls() -> None:
    said = {"outcome": "Succeeded", "result": {"nonsense": 1}}
    facts = StageFacts(k8s_job("fetch", condition("Complete")), (ended_pod("fetch", said),))
    assert types(look(job(), {Stage.FETCH: facts}).status) == {"Stalled": reasons.INVALID_RESULT}


def test_a_foreign_job_is_not_ours() -> None:
    decision = look(job(), {Stage.FETCH: StageFacts(k8s_job("fetch", owner="somebody"))})
    assert types(decision.status) == {"Stalled": reasons.FOREIGN_OBJECT}
    assert not decision.actions


def test_suspend_before_and_while_training() -> None:
    assert types(look(job(suspend=True)).status) == {"Suspended": reasons.SUSPENDED}
    done = after(Stage.FETCH, Stage.CHECK)
    made = job(done.status, suspend=True)
    running = look(made, {Stage.TRAIN: StageFacts(k8s_job("train"))})
    assert running.actions == (PatchJob(Stage.TRAIN, "one-train", {"suspend": True}),)
    held = StageFacts(k8s_job("train", suspend=True))
    assert types(look(made, {Stage.TRAIN: held}).status)["Suspended"] == reasons.SUSPENDED
    resumed = look(job(done.status, retries=5), {Stage.TRAIN: held})
    assert resumed.actions == (PatchJob(Stage.TRAIN, "one-train", {"suspend": False, "backoffLimit": 5}),)


def queued_job(*, suspend: bool, **labels: str) -> Obj:
    made = k8s_job("train", suspend=suspend)
    made["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "gpus"} | labels
    return made


def test_a_queue_owns_suspend() -> None:
    decision = look(after(Stage.FETCH, Stage.CHECK), {Stage.TRAIN: StageFacts(queued_job(suspend=True))})
    assert not decision.actions
    assert types(decision.status)["Reconciling"] == reasons.QUEUE_WAITING
    assert decision.status.stage == "Queued"


def test_a_queue_hears_of_a_changed_priority_while_the_job_waits() -> None:
    done = after(Stage.FETCH, Stage.CHECK).status
    label = "kueue.x-k8s.io/priority-class"
    waiting = {Stage.TRAIN: StageFacts(queued_job(suspend=True))}
    assert look(job(done, priority="high"), waiting).actions == (
        PatchJob(Stage.TRAIN, "one-train", labels={label: "high"}),
    )
    told = {Stage.TRAIN: StageFacts(queued_job(suspend=True, **{label: "high"}))}
    assert not look(job(done, priority="high"), told).actions
    assert look(job(done), told).actions == (PatchJob(Stage.TRAIN, "one-train", labels={label: None}),)
    running = {Stage.TRAIN: StageFacts(queued_job(suspend=False))}
    assert not look(job(done, priority="high"), running).actions


@pytest.mark.parametrize("held", [True, False])
def test_suspending_a_queued_job_gives_its_place_back(held: bool) -> None:
    done = job(after(Stage.FETCH, Stage.CHECK).status, suspend=True)
    leaving = look(done, {Stage.TRAIN: StageFacts(queued_job(suspend=held))})
    assert leaving.actions == (DeleteJob(Stage.TRAIN, "one-train", "j1", foreground=True),)
    going = queued_job(suspend=held)
    going["metadata"]["deletionTimestamp"] = "2026-11-23T12:00:00Z"
    waiting = look(job(leaving.status, suspend=True), {Stage.TRAIN: StageFacts(going)})
    assert not waiting.actions
    gone = look(job(waiting.status, suspend=True))
    assert types(gone.status)["Suspended"] == reasons.SUSPENDED
    assert "from the last checkpoint" in next(c.message for c in gone.status.conditions if c.type == "Suspended")
    assert look(job(gone.status)).actions == (CreateStage(Stage.TRAIN),)


def test_a_curve_is_short_and_keeps_its_ends() -> None:
    points = [(step, 4.0 - step / 100) for step in range(1, 65)]
    kept = results.curve(points)
    assert [kept[0].step, kept[-1].step, len(kept)] == [1, 64, 16]
    assert [point.step for point in kept] == sorted({point.step for point in kept})
    assert [point.step for point in results.curve(points[:3])] == [1, 2, 3]
    assert results.curve([]) == []


def test_progress_is_not_written_at_every_poll() -> None:
    made = after(Stage.FETCH, Stage.CHECK)
    pod = {"metadata": {"labels": {}, "creationTimestamp": "2026-11-23T11:59:59Z"}, "status": {"phase": "Running"}}
    stages = {Stage.TRAIN: StageFacts(k8s_job("train"), (pod,))}
    said = Progress(phase="Training", step=3.5, total_steps=12, percent=20, loss=3.14159, eta_seconds=190)
    first = look(made, stages, progress=said).status
    assert first.progress is not None
    assert (first.progress.percent, first.progress.eta, first.progress.loss) == (20, "3m10s", 3.1416)
    later = said.model_copy(update={"step": 4.0})
    soon = look(job(first), stages, progress=later, now=NOW + timedelta(seconds=5)).status
    assert soon == first
    due = look(job(first), stages, progress=later, now=NOW + timedelta(seconds=9)).status
    assert due.progress is not None
    assert due.progress.step == 4.0


def test_events_are_read_only_where_a_pod_is_missing_or_slow() -> None:
    old = k8s_job("fetch")
    old["metadata"]["creationTimestamp"] = "2026-11-23T11:00:00Z"
    assert needs_events(StageFacts(old), NOW)
    assert not needs_events(StageFacts(k8s_job("fetch")), NOW)
    assert not needs_events(succeeded("fetch"), NOW)
    assert not needs_events(StageFacts(), NOW)


def test_notes_tell_transitions_only() -> None:
    made = after(Stage.FETCH, Stage.CHECK, Stage.TRAIN, Stage.PUBLISH)
    notes = stage_notes([], made.status.stages)
    assert [note.reason for note in notes] == [
        "FetchSucceeded",
        "CheckSucceeded",
        "PlanSucceeded",
        "TrainSucceeded",
        "PublishSucceeded",
    ]
    assert [note.reason for note in condition_notes([], made.status.conditions)] == ["Succeeded"]
    assert not stage_notes(made.status.stages, made.status.stages)
    assert not condition_notes(made.status.conditions, made.status.conditions)


def test_a_message_stays_within_its_limit() -> None:
    said = {"outcome": "Failed", "reason": "DatasetInvalid", "message": "x" * 1024}
    facts = StageFacts(k8s_job("fetch", condition("Failed")), (ended_pod("fetch", said, 42),))
    status = look(job(), {Stage.FETCH: facts}).status
    assert all(len(item.message) <= 1024 for item in status.conditions)
    assert len(json.dumps(status.to_dict())) < 65536
