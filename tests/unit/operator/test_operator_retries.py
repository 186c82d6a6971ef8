"""Tries of training: what counts, what is said between them, and how a job that failed for good goes on."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from operator_world import CHECKED, FETCHED, TRAINED

from tuneloop_core.api import FineTuneJob, FineTuneJobStatus, PlanStatus
from tuneloop_core.constants import LABEL_COMPONENT, STAGE_INPUT_ENV
from tuneloop_core.settings import ImageSettings, Settings
from tuneloop_core.stages import FetchResult, Notice, Progress, Reason, Stage
from tuneloop_operator import attempts
from tuneloop_operator.build.grace import grace_seconds, train_grace
from tuneloop_operator.build.stages import build_stage
from tuneloop_operator.policy import reasons
from tuneloop_operator.policy.actions import CreateStage, PatchJob
from tuneloop_operator.policy.finetune import Decision, JobFacts, decide, is_finished
from tuneloop_operator.policy.pods import oom_words
from tuneloop_operator.policy.results import fetch_result
from tuneloop_operator.policy.transitions import condition_notes, training_notes
from tuneloop_operator.policy.verdicts import StageFacts

Obj = dict[str, Any]
NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
STOPPING = {"earlyStopping": {"interval": 10}}
DISRUPTED = {"type": "DisruptionTarget", "status": "True"}


def job(status: FineTuneJobStatus | None = None, generation: int = 1, **spec: Any) -> FineTuneJob:
    body = {
        "model": {"uri": "hf://o/m"},
        "dataset": {"uri": "hf://datasets/o/d"},
        "resources": {"accelerators": 0},
    } | spec
    metadata = {"name": "one", "namespace": "team", "uid": "owner", "generation": generation}
    made = FineTuneJob.model_validate({"metadata": metadata, "spec": body})
    return made.model_copy(update={"status": status or FineTuneJobStatus()})


def k8s_job(
    stage: str, *conditions: str, name: str = "", limit: int = 3, failed: int = 1, suspend: bool = False
) -> Obj:
    return {
        "metadata": {
            "name": name or f"one-{stage}",
            "uid": f"uid-{name or stage}",
            "labels": {},
            "ownerReferences": [{"uid": "owner"}],
            "creationTimestamp": "2026-11-23T11:59:58Z",
        },
        "spec": {"backoffLimit": limit, "suspend": suspend},
        "status": {"conditions": [{"type": each, "status": "True"} for each in conditions], "failed": failed},
    }


def pod(stage: str, phase: str, code: int = 0, said: Obj | None = None, **status: Any) -> Obj:
    message = json.dumps({"stage": stage} | said) if said else ""
    ended = {"exitCode": code, "message": message, "finishedAt": "2026-11-23T11:59:59Z"}
    state = {"terminated": ended} if phase in ("Failed", "Succeeded") else {}
    return {
        "metadata": {"name": "p", "uid": "p", "labels": {}, "creationTimestamp": "2026-11-23T11:00:00Z"},
        "spec": {"nodeName": "node-7", "containers": [{"name": "main", "resources": {"limits": {"memory": "3Gi"}}}]},
        "status": {"phase": phase, "containerStatuses": [{"state": state | status.pop("state", {})}]} | status,
    }


def done(stage: str, result: Obj) -> StageFacts:
    said = {"outcome": "Succeeded", "result": result}
    return StageFacts(k8s_job(stage, "Complete"), (pod(stage, "Succeeded", said=said),))


def look(made: FineTuneJob, train: StageFacts | None = None, progress: Progress | None = None) -> Decision:
    stages = {Stage.FETCH: done("fetch", FETCHED), Stage.CHECK: done("check", CHECKED)}
    return decide(made, JobFacts(NOW, stages | ({Stage.TRAIN: train} if train else {}), progress))


def failed_pod(reason: str = "InternalError", code: int = 1) -> Obj:
    return pod("train", "Failed", code, {"outcome": "Failed", "reason": reason, "message": "it broke."})


def reason_of(status: FineTuneJobStatus, kind: str) -> str:
    return next((item.reason for item in status.conditions if item.type == kind and item.status == "True"), "")


def message_of(status: FineTuneJobStatus, kind: str) -> str:
    return next(item.message for item in status.conditions if item.type == kind)


@pytest.mark.parametrize(
    ("retries", "used", "name", "limit", "goes_on"),
    [
        (3, None, "one-train", 3, False),
        (0, None, "one-train", 0, False),
        (3, 3, "one-train-4", 0, False),
        (4, 3, "one-train-4", 0, True),
        (7, 3, "one-train-4", 3, True),
        (2, 3, "one-train-4", 0, False),
    ],
)
def test_jobs_of_training(retries: int, used: int | None, name: str, limit: int, goes_on: bool) -> None:
    assert attempts.train_job("one", used) == name
    assert attempts.backoff_limit(retries, used) == limit
    assert attempts.may_go_on(retries, used) is goes_on


def test_pods_of_all_jobs_together_are_retries_plus_one() -> None:
    used: int | None = None
    pods = 0
    for retries in (3, 4, 9):
        limit = attempts.backoff_limit(retries, used)
        pods, used = pods + limit + 1, attempts.used_by(limit, used)
        assert (pods, used) == (retries + 1, retries)


def test_what_is_used_grows_also_when_retries_were_lowered() -> None:
    used = attempts.used_by(attempts.backoff_limit(0, 3), 3)
    assert used == 4
    assert attempts.train_job("one", used) == "one-train-5"


@pytest.mark.parametrize(
    ("spec", "plan", "seconds"),
    [
        ({"training": {"maxDuration": "2h"}}, None, 4 * 3600),
        ({"training": {"maxDuration": "2h"}}, {"evaluation_duration": "10m"}, 4 * 3600 + 1800),
        ({"training": {"maxDuration": "2h"}}, {"evaluation_duration": "20h30m"}, 4 * 3600 + 3 * 73_800),
        # 16 bytes a trained parameter at 50 MB/s; in 6 h 36 times by the clock, at the end and at the deadline
        ({}, {"trainable_parameters": 40_000_000}, 7 * 3600 + round(38 * 12.8)),
        ({}, {"trainable_parameters": 8_000_000_000}, 7 * 3600 + 38 * 2560),
        ({"checkpoint": {"interval": "1h"}}, {"trainable_parameters": 8_000_000_000}, 7 * 3600 + 8 * 2560),
        ({"training": STOPPING}, {"trainable_parameters": 8_000_000_000}, 7 * 3600 + 38 * 3200),  # the best weights too
        (
            {"training": {"maxDuration": "1000h"}, "checkpoint": {"interval": "1s"}},
            {"trainable_parameters": 70_000_000_000},
            2**31 - 1 - 1800,  # the most that the API takes
        ),
    ],
)
def test_the_deadline_leaves_time_for_what_is_planned(spec: Obj, plan: Obj | None, seconds: int) -> None:
    wanted = job(FineTuneJobStatus(plan=PlanStatus.model_validate(plan) if plan else None), **spec)
    made = build_stage(
        Stage.TRAIN,
        wanted,
        FetchResult.model_validate(FETCHED),
        Settings(images=ImageSettings(trainer="t", server="s")),
        "1",
    )
    pod = made["spec"]["template"]["spec"]
    told = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}[STAGE_INPUT_ENV]
    assert json.loads(told)["deadlineSeconds"] == seconds
    assert seconds < pod["activeDeadlineSeconds"] < 2**31, "the trainer's own comes first: it saves"


def test_a_final_failure_goes_on_when_retries_are_raised() -> None:
    facts = StageFacts(k8s_job("train", "Failed", failed=4), (failed_pod(),) * 4)
    failed = look(job(), facts).status
    assert reason_of(failed, "Failed") == "InternalError"
    assert "raise spec.retries above 3 to go on from the last checkpoint" in message_of(failed, "Failed")
    assert is_finished(job(failed))
    assert is_finished(job(failed, retries=2))
    raised = job(failed, generation=2, retries=5)
    assert not is_finished(raised)
    assert look(raised).actions == (CreateStage(Stage.TRAIN),)

    made = k8s_job("train", name="one-train-4", limit=1, failed=0)
    running = look(raised, StageFacts(made, (pod("train", "Running"),)))
    assert not running.actions
    status = running.status
    assert (status.stage, reason_of(status, "Failed"), reason_of(status, "Stalled")) == ("Training", "", "")
    stage = next(each for each in status.stages if each.name == "train")
    assert (stage.state, stage.attempts, stage.retries_used, stage.finish_time) == ("Running", 5, 3, None)

    again = job(status, generation=2, retries=5)
    ended = look(again, StageFacts(k8s_job("train", "Failed", name="one-train-4", limit=1), (failed_pod(),) * 2)).status
    assert "raise spec.retries above 5" in message_of(ended, "Failed")
    assert is_finished(job(ended, retries=5))

    result = pod("train", "Succeeded", said={"outcome": "Succeeded", "result": TRAINED})
    complete = look(again, StageFacts(k8s_job("train", "Complete", name="one-train-4"), (result,))).status
    assert next(each for each in complete.stages if each.name == "train").state == "Succeeded"


def test_a_missed_gate_stays_final_whatever_the_retries() -> None:
    gates = {"gates": [{"metric": "evalLoss", "max": "0.1"}]}
    failed = look(job(), StageFacts(k8s_job("train", "Failed"), (failed_pod(),))).status
    result = pod("train", "Succeeded", said={"outcome": "Succeeded", "result": TRAINED})
    facts = StageFacts(k8s_job("train", "Complete", name="one-train-4"), (result,))
    status = look(job(failed, retries=5, evaluation=gates), facts).status
    assert reason_of(status, "Failed") == reasons.GATE_FAILED
    assert is_finished(job(status, retries=9, evaluation=gates))


def test_retries_raised_in_the_moment_of_failure_are_not_lost() -> None:
    decision = look(job(retries=5), StageFacts(k8s_job("train", "Failed", limit=3), (failed_pod(),)))
    assert reason_of(decision.status, "Failed") == "InternalError"
    assert decision.look_again == 1.0
    assert not is_finished(job(decision.status, retries=5))


def test_the_job_that_goes_on_has_its_own_name_and_the_retries_left() -> None:
    failed = look(job(), StageFacts(k8s_job("train", "Failed"), (failed_pod(),))).status
    settings = Settings(images=ImageSettings(trainer="t", server="s"))
    made = job(failed, retries=6)
    built = build_stage(Stage.TRAIN, made, fetch_result(failed), settings, "1")
    assert (built["metadata"]["name"], built["spec"]["backoffLimit"]) == ("one-train-4", 2)
    assert built["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == train_grace(made.spec, failed)
    running = k8s_job("train", name="one-train-4", limit=0)
    assert look(made, StageFacts(running)).actions == (PatchJob(Stage.TRAIN, "one-train-4", {"backoffLimit": 2}),)


@pytest.mark.parametrize(
    ("ended", "reason", "words"),
    [
        (pod("train", "Failed", 137, state={"terminated": {"reason": "OOMKilled"}}), "OOMKilled", "limit 3Gi"),
        (pod("train", "Failed", 137), "PodFailed", "exit code 137"),
        (pod("train", "Failed", 76), "StepTimeout", "where every thread stood"),
        (failed_pod("StepTimeout", 76), "StepTimeout", "it broke"),
        (failed_pod("OutOfMemory"), "OutOfMemory", "it broke"),
        (pod("train", "Failed", 137, reason="Evicted", message="low on memory"), "Evicted", "low on memory"),
        (
            pod(
                "train", "Failed", 143, conditions=[DISRUPTED | {"reason": "EvictionByEvictionAPI", "message": "drain"}]
            ),
            "Evicted",
            "drain",
        ),
        (pod("train", "Failed", 0, conditions=[DISRUPTED | {"reason": "DeletionByPodGC"}]), "NodeLost", "node node-7"),
        (pod("train", "Failed", 143, reason="DeadlineExceeded"), "DeadlineExceeded", "checkpoint.interval"),
    ],
)
def test_the_cause_is_named_until_the_next_pod_runs(ended: Obj, reason: str, words: str) -> None:
    waiting = look(job(), StageFacts(k8s_job("train"), (ended,))).status
    assert reason_of(waiting, "Reconciling") == reason
    said = message_of(waiting, "Reconciling")
    assert words in said
    assert said.endswith("A new pod goes on from the last checkpoint")
    assert [note.warning for note in condition_notes([], waiting.conditions)] == [True]
    final = look(job(), StageFacts(k8s_job("train", "Failed"), (ended,))).status
    assert reason_of(final, "Failed") == (reason if reason != "PodFailed" else reasons.RETRIES_EXHAUSTED)
    running = look(job(), StageFacts(k8s_job("train"), (ended, pod("train", "Running")))).status
    assert reason_of(running, "Reconciling") == reasons.RUNNING


@pytest.mark.parametrize(
    ("component", "words", "other"),
    [
        ("train", "method.adapter (QLoRA holds less than LoRA", "stages.memoryLimit"),
        ("check", "raise stages.memoryLimit of the chart", "training.maxSequenceLength"),
        ("server", "Lower engine.maxModelLength", "method.adapter"),
    ],
)
def test_who_was_killed_for_memory_hears_what_it_can_lower(component: str, words: str, other: str) -> None:
    killed = pod("train", "Failed", 137)
    killed["metadata"]["labels"][LABEL_COMPONENT] = component
    said = oom_words(killed)
    assert words in said
    assert other not in said


def test_a_cause_is_not_told_again_after_a_later_pod_was_deleted() -> None:
    ended = pod("train", "Failed", 137)
    heard = look(
        job(), StageFacts(k8s_job("train"), (ended, pod("train", "Running"))), Progress(phase="Training")
    ).status
    assert heard.progress is not None
    later = look(job(heard), StageFacts(k8s_job("train"), (ended,))).status
    assert reason_of(later, "Reconciling") == reasons.STARTING


def test_a_pod_that_obeyed_is_no_cause() -> None:
    obeyed = failed_pod("Terminated", 143)
    status = look(job(), StageFacts(k8s_job("train"), (obeyed,))).status
    assert reason_of(status, "Reconciling") == reasons.STARTING


def test_a_running_pod_on_a_node_that_was_given_up_is_told() -> None:
    lost = pod("train", "Running", conditions=[DISRUPTED | {"reason": "DeletionByTaintManager"}])
    status = look(job(), StageFacts(k8s_job("train"), (lost,))).status
    assert reason_of(status, "Reconciling") == reasons.NODE_LOST


def test_what_training_met_is_told_once() -> None:
    facts = StageFacts(k8s_job("train"), (pod("train", "Running"),))
    notice = Notice(reason=Reason.CHECKPOINT_CORRUPT, message="step-9 is damaged; went on from step-8")
    said = Progress(
        phase="Training", notices=[notice], resumes=2, checkpoint_step=8, checkpoint_time="2026-11-23T11:59:00Z"
    )
    status = look(job(), facts, said).status
    assert [(each.reason, each.message) for each in status.notices] == [("CheckpointCorrupt", notice.message)]
    (note,) = training_notes([], status.notices)
    assert (note.reason, note.warning) == ("CheckpointCorrupt", True)
    assert not training_notes(status.notices, status.notices)


def test_checkpoint_and_resumes_follow_the_pod_that_knows() -> None:
    facts = StageFacts(k8s_job("train"), (pod("train", "Running"),))
    time = "2026-11-23T11:59:00Z"
    known = look(job(), facts, Progress(phase="Training", resumes=2, checkpoint_step=8, checkpoint_time=time)).status
    loading = look(job(known), facts, Progress(phase="Loading")).status
    assert loading.resumes == 2
    assert loading.checkpoint == known.checkpoint
    anew = look(job(loading), facts, Progress(phase="Training")).status
    assert anew.checkpoint is None
    assert anew.resumes == 2


@pytest.mark.parametrize(
    ("saving", "pack_seconds", "grace"),
    [
        (0, 0, 30),
        (1.6, 0.5, 30),  # a small adapter on a GPU
        (12.8, 1, 43),  # LoRA r16 of 7B
        (1.6, 60, 138),  # a slow CPU: 15 + 2 x (60 + 1.6)
        (480, 1, 977),  # all weights of 1.5B
        (2560, 1, 3600),  # all weights of 8B, at most an hour
    ],
)
def test_grace(saving: float, pack_seconds: float, grace: int) -> None:
    assert grace_seconds(saving, pack_seconds) == grace


def test_grace_of_a_job_follows_its_plan() -> None:
    status = look(job()).status
    assert status.plan is not None
    unplanned = status.plan.model_copy(update={"trainable_parameters": 0})
    assert train_grace(job().spec, status.model_copy(update={"plan": unplanned})) == 120
    planned = {"trainable_parameters": 40_000_000, "estimated_duration": "1h", "tokens": 1_024_000}
    status = status.model_copy(update={"plan": status.plan.model_copy(update=planned)})
    assert train_grace(job().spec, status) == 48  # 15 + 2 x (3600 / 1000 + 640 MB at 50 MB/s)
    stopping = job(training=STOPPING).spec
    assert train_grace(stopping, status) == 54  # 20 bytes instead of 16
