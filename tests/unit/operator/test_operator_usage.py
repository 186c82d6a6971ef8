"""What the train stage took: every second of every pod once, though pods go and the operator may be away."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from operator_world import CHECKED, FETCHED

from tuneloop_core.api import FineTuneJob, FineTuneJobStatus, UsageStatus
from tuneloop_core.stages import Progress, Stage
from tuneloop_operator.policy.finetune import JobFacts, decide
from tuneloop_operator.policy.usage import has_news, measured
from tuneloop_operator.policy.verdicts import StageFacts

Obj = dict[str, Any]
NOON = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


def job(usage: UsageStatus | None = None, **resources: Any) -> FineTuneJob:
    spec = {"model": {"uri": "hf://o/m"}, "dataset": {"uri": "hf://datasets/o/d"}, "resources": resources}
    made = FineTuneJob.model_validate({"metadata": {"name": "one", "namespace": "t", "uid": "owner"}, "spec": spec})
    return made.model_copy(update={"status": FineTuneJobStatus(usage=usage)})


def at(seconds: float) -> str:
    return (NOON + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod(start: float, end: float | None = None, lost: float | None = None) -> Obj:
    """A pod that runs since ``start`` seconds after noon, ended at ``end``, or was given up with its node."""
    state: Obj = {"running": {"startedAt": at(start)}}
    if end is not None:
        state = {"terminated": {"startedAt": at(start), "finishedAt": at(end), "exitCode": 1}}
    gone = [{"type": "DisruptionTarget", "status": "True", "lastTransitionTime": at(lost)}] if lost is not None else []
    phase = "Running" if end is None and lost is None else "Failed"
    status = {"phase": phase, "containerStatuses": [{"state": state}], "conditions": gone}
    return {"metadata": {"name": "p", "labels": {}, "creationTimestamp": at(start)}, "status": status}


def counted(*looks: tuple[float, list[Obj]], **resources: Any) -> UsageStatus:
    """The usage after these looks: when, in seconds after noon, and which pods were there."""
    usage = None
    for when, pods in looks:
        usage = measured(job(usage, **resources), pods, NOON + timedelta(seconds=when))
    assert usage is not None
    return usage


@pytest.mark.parametrize(
    ("looks", "seconds"),
    [
        ([(10, [pod(0)]), (20, [pod(0)])], 20),  # one that runs
        ([(10, [pod(0)]), (40, [pod(0, 30)]), (90, [pod(0, 30)])], 30),  # one that ended is not counted again
        ([(30, [pod(0, 30)]), (50, [pod(40)])], 40),  # suspended and resumed, or a new Job: the first pod is gone
        ([(30, [pod(0, 30)]), (50, [pod(0, 30), pod(40)])], 40),  # a retry of the same Job: the first is still there
        ([(10, [pod(0)]), (600, [pod(0, 500)])], 500),  # the operator was away
        ([(10, [pod(0)]), (600, [pod(0, 300), pod(310)])], 590),  # away, and a pod of a retry runs when it is back
        ([(10, [pod(0)]), (600, [pod(500)])], 110),  # away, and the first pod left no trace
        ([(10, [pod(0)]), (400, [pod(0, lost=100)])], 100),  # its node was lost, no kubelet says when it ended
        ([(0.9, [pod(0)]), (1.8, [pod(0)]), (2.7, [pod(0)]), (3.6, [pod(0)])], 3),  # fractions of a second
        ([(10, [pod(0, 12)]), (20, [pod(0, 12)])], 12),  # the node's clock is ahead
        ([(10, []), (20, [pod(15)])], 5),
    ],
)
def test_every_second_counts_once(looks: list[tuple[float, list[Obj]]], seconds: float) -> None:
    usage = counted(*looks, accelerators=2)
    assert (usage.train_seconds, usage.accelerator_seconds) == (seconds, 2 * seconds)


def test_every_device_of_several_pods_counts_for_as_long_as_the_stage_took() -> None:
    ended = [pod(0, 40)] * 4
    usage = measured(job(accelerators=8, nodes=4), ended, NOON + timedelta(seconds=60), 20, 7)
    assert (usage.train_seconds, usage.accelerator_seconds) == (40, 8 * 4 * 40)
    assert (usage.training_seconds, usage.peak_memory_bytes) == (20, 7)


def test_a_status_of_an_older_release_is_not_counted_twice() -> None:
    usage = measured(job(UsageStatus(train_seconds=50, accelerator_seconds=50)), [pod(0)], NOON + timedelta(seconds=60))
    assert usage.train_seconds == 60


def test_training_that_nobody_saw_counts_by_the_trainers_own_clock() -> None:
    usage = measured(job(), [], NOON, training_seconds=70)
    assert (usage.train_seconds, usage.training_seconds) == (70, 70)


def test_the_end_of_a_pod_is_news_once() -> None:
    now = NOON + timedelta(seconds=60)
    assert not has_news(job(), [pod(0)], now)
    assert has_news(job(), [pod(0, 30)], now)
    seen = measured(job(), [pod(0, 30)], now)
    assert not has_news(job(seen), [pod(0, 30)], now)


def test_a_pod_that_ended_between_two_polls_is_counted_before_it_goes() -> None:
    """The next pod of the Job is not there yet, and nobody tells progress."""
    said = {"stage": "train", "outcome": "Failed", "reason": "InternalError", "message": "it broke."}
    ended = pod(0, 30)
    ended["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = json.dumps(said)
    meta = {"name": "one-train", "uid": "j", "labels": {}, "ownerReferences": [{"uid": "owner"}]}
    k8s_job = {"metadata": meta, "spec": {"backoffLimit": 3}, "status": {"failed": 1}}
    stages = {stage: _done(stage) for stage in (Stage.FETCH, Stage.CHECK)}
    facts = JobFacts(NOON + timedelta(seconds=40), stages | {Stage.TRAIN: StageFacts(k8s_job, (ended,))})
    usage = decide(job(), facts).status.usage
    assert usage is not None
    assert usage.train_seconds == 30
    polled = JobFacts(facts.now, facts.stages, Progress(phase="Training", step=1))
    again = decide(job(usage), polled).status.usage
    assert again is not None
    assert again.train_seconds == 30


def _done(stage: Stage) -> StageFacts:
    said = {"stage": stage, "outcome": "Succeeded", "result": FETCHED if stage is Stage.FETCH else CHECKED}
    state = {"terminated": {"message": json.dumps(said), "exitCode": 0}}
    meta = {"name": f"one-{stage}", "uid": "j", "labels": {}, "ownerReferences": [{"uid": "owner"}]}
    conditions = [{"type": "Complete", "status": "True"}]
    k8s_job = {"metadata": meta, "spec": {"backoffLimit": 3}, "status": {"conditions": conditions}}
    status = {"phase": "Succeeded", "containerStatuses": [{"state": state}]}
    made = {"metadata": {"name": "p", "labels": {}, "creationTimestamp": at(0)}, "status": status}
    return StageFacts(k8s_job, (made,))
