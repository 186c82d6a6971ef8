"""Training in several pods: whose failure counts and is told, and what the pods are given."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from tuneloop_core.api import FineTuneJob, FineTuneJobStatus
from tuneloop_core.api.finetunejob_status import StageStatus
from tuneloop_core.settings import ImageSettings, Settings
from tuneloop_core.stages import FetchResult, Stage, TrainInput
from tuneloop_operator.build.peers import build_peers
from tuneloop_operator.build.stages import build_stage
from tuneloop_operator.policy.pods import INDEX_LABEL, leads
from tuneloop_operator.policy.terminations import last_termination, why_failed
from tuneloop_operator.policy.verdicts import Case, StageFacts, judge, needs_events

Obj = dict[str, Any]
NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
SETTINGS = Settings(images=ImageSettings(trainer="trainer:1", server="server:1"))
FETCHED = FetchResult(model_uri="hf://o/m@a", model_path="models/a", model_commit="a", model_bytes=1)


def job(name: str = "wide", **resources: Any) -> FineTuneJob:
    spec = {"model": {"uri": "hf://o/m"}, "dataset": {"uri": "hf://datasets/o/d"}, "resources": resources}
    return FineTuneJob.model_validate({"metadata": {"name": name, "namespace": "team", "uid": "u"}, "spec": spec})


def pod(index: int, code: int | None = None, reason: str = "", at: int = 30, why: str = "") -> Obj:
    """A pod of an index: running, or ended with a code at a second, with its own words or the kubelet's."""
    outcome = {"outcome": "Failed", "reason": reason, "message": f"{reason} of {index}."} if reason else {}
    message = json.dumps({"stage": "train"} | outcome) if outcome else ""
    times = {"startedAt": "2026-11-23T11:59:00Z", "finishedAt": f"2026-11-23T11:59:{at:02}Z"}
    ended = {"terminated": {"exitCode": code, "message": message, "reason": why} | times}
    name = f"wide-train-{index}-{code}-{at}"
    return {
        "metadata": {
            "name": name,
            "uid": name,
            "labels": {INDEX_LABEL: str(index)},
            "creationTimestamp": NOW.isoformat(),
        },
        "spec": {"nodeName": "n", "containers": [{"name": "main", "resources": {}}]},
        "status": {
            "phase": "Running" if code is None else "Failed" if code else "Succeeded",
            "containerStatuses": [{"state": {"running": {}} if code is None else ended}],
        },
    }


def k8s_job(*conditions: str, parallelism: int = 2) -> Obj:
    return {
        "metadata": {
            "name": "wide-train", "uid": "j", "labels": {}, "ownerReferences": [{"uid": "u"}],
            "creationTimestamp": "2026-11-23T11:00:00Z",
        },
        "spec": {"backoffLimit": 3, "parallelism": parallelism},
        "status": {"conditions": [{"type": each, "status": "True"} for each in conditions]},
    }  # fmt: skip


OOM = pod(1, 137, at=10, why="OOMKilled")
FOLLOWED = pod(0, 77, "PeerLost", at=20)


@pytest.mark.parametrize(
    ("pods", "reason"),
    [
        ([FOLLOWED, OOM], "OOMKilled"),
        ([pod(0, 76, "StepTimeout", at=10), pod(1, 77, "PeerLost", at=20)], "StepTimeout"),
        ([pod(0, 42, "LossNaN", at=10), pod(1, 143, "Terminated", at=20)], "LossNaN"),
        ([FOLLOWED], "PeerLost"),
        ([pod(1, 137, at=1, why="OOMKilled"), pod(0, 77, at=2), pod(1, 1, "InternalError", at=9)], "InternalError"),
    ],
)
def test_the_cause_is_told_not_what_followed(pods: list[Obj], reason: str) -> None:
    assert why_failed(k8s_job("Failed"), pods, Stage.TRAIN).reason == reason
    case = Case(
        Stage.TRAIN, StageStatus(name="train", state="Running"), StageFacts(k8s_job(), tuple(pods)), "u", False, 3, NOW
    )
    between = judge(case)
    assert between.reason == reason
    assert "A new pod goes on from the last checkpoint" in between.message


def test_only_the_first_pod_answers_and_is_asked() -> None:
    assert [leads(pod(index)) for index in (0, 1)] == [True, False]
    assert leads({"metadata": {"labels": {}}}), "the only pod of a Job that is not indexed"
    assert last_termination([pod(1, 0)], Stage.TRAIN, outcome="Succeeded") is None


def test_a_pod_that_is_missing_or_waits_is_looked_into() -> None:
    running, waiting = pod(0), pod(1) | {"status": {"phase": "Pending"}}
    old = {"metadata": running["metadata"] | {"creationTimestamp": "2026-11-23T11:00:00Z"}}
    assert not needs_events(StageFacts(k8s_job(), (running, pod(1))), NOW)
    assert needs_events(StageFacts(k8s_job(), (running,)), NOW), "one of two was refused"
    assert needs_events(StageFacts(k8s_job(), (running, waiting | old)), NOW)
    assert not needs_events(StageFacts(k8s_job(parallelism=1), (running,)), NOW)
    refused = {
        "reason": "FailedCreate",
        "message": "is forbidden: exceeded quota: q, requested: a, used: b, limited: c",
    }
    facts = StageFacts(k8s_job(), (running,), (refused,))
    case = Case(Stage.TRAIN, StageStatus(name="train", state="Running"), facts, "u", False, 3, NOW)
    assert judge(case).reason == "QuotaExceeded"


def test_one_pod_has_neither_service_nor_policy_and_several_have_both() -> None:
    assert build_peers(job(accelerators=8), SETTINGS) == []
    service, policy = build_peers(job(accelerators=0, nodes=2), SETTINGS)
    assert (service["kind"], policy["kind"]) == ("Service", "NetworkPolicy")
    assert [
        each["kind"] for each in build_peers(job(nodes=2), SETTINGS.model_copy(update={"network_policies": False}))
    ] == ["Service"]


def test_the_longest_name_still_makes_host_names() -> None:
    longest = job("a" * 50, accelerators=0, nodes=64)
    status = FineTuneJobStatus(stages=[StageStatus(name="train", state="Failed", retries_used=19)])
    made = build_stage(Stage.TRAIN, longest.model_copy(update={"status": status}), FETCHED, SETTINGS, "1")
    assert len(f"{made['metadata']['name']}-63") <= 63, "the Job controller takes no longer host names"
    (container,) = made["spec"]["template"]["spec"]["containers"]
    text = next(each["value"] for each in container["env"] if each["name"] == "TUNELOOP_STAGE_INPUT")
    assert TrainInput.model_validate_json(text).rendezvous == f"{'a' * 50}-train-20-0.{'a' * 50}-train:29500"
