"""A FineTuneJob in real pods: the whole path, with the operator and the training pod killed on the way."""

from collections.abc import Callable
from typing import Any

import pytest
from e2e_kube import Kube, condition, is_true
from e2e_world import NAMESPACE, SYSTEM, audit_creates, fine_tune_job, long_job, pods_of

STAGES = ["fetch", "check", "plan", "train", "publish"]


@pytest.fixture(scope="module")
def finished(kube: Kube, world: None, answers_job: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The job that the whole tier shares, seen to its end with what was noticed on the way."""
    return answers_job()


def test_every_stage_succeeded(finished: dict[str, Any]) -> None:
    stages = {s["name"]: s["state"] for s in finished["job"]["status"]["stages"]}
    assert stages == dict.fromkeys(STAGES, "Succeeded")


def test_conditions_say_complete_and_calm(finished: dict[str, Any]) -> None:
    job = finished["job"]
    assert is_true(job, "Ready")
    assert is_true(job, "Complete")
    assert not condition(job, "Reconciling")
    assert not condition(job, "Stalled")
    assert job["status"]["observedGeneration"] == job["metadata"]["generation"]


def test_progress_was_seen_while_training(finished: dict[str, Any]) -> None:
    steps = finished["steps"]
    assert len(steps) >= 3, f"progress moved only through {steps}"


def test_base_and_tuned_were_scored(finished: dict[str, Any]) -> None:
    evaluation = finished["job"]["status"]["evaluation"]
    assert evaluation["tuned"]["evalLoss"] < evaluation["base"]["evalLoss"]
    assert evaluation["tuned"]["generations"] == 2
    assert all(gate["passed"] for gate in evaluation["gates"])


def test_killed_training_went_on_from_its_checkpoint(finished: dict[str, Any]) -> None:
    status = finished["job"]["status"]
    assert finished["killed_after_step"] > 0
    assert status["resumes"] == 1
    assert finished["first_step_after_kill"] >= finished["checkpoint_step"]


def test_nothing_was_made_twice(kube: Kube, finished: dict[str, Any]) -> None:
    since = finished["job"]["metadata"]["creationTimestamp"]
    made = audit_creates(NAMESPACE, "jobs", prefix="answers-", since=since)
    assert made == {"answers-fetch": 1, "answers-check": 1, "answers-train": 1, "answers-publish": 1}


def test_rights_differ_by_stage(kube: Kube, finished: dict[str, Any]) -> None:
    volumes = {}
    for job in kube.list("jobs", NAMESPACE, "tuneloop.dev/finetunejob=answers"):
        spec = job["spec"]["template"]["spec"]
        assert spec["automountServiceAccountToken"] is False
        volumes[job["metadata"]["labels"]["tuneloop.dev/stage"]] = {
            source["secret"]["name"]
            for v in spec["volumes"]
            if "projected" in v
            for source in v["projected"]["sources"]
        }
    assert volumes == {"fetch": {"hub-token"}, "check": set(), "train": set(), "publish": set()}


def test_missed_gate_keeps_the_work_and_says_by_how_much(kube: Kube, finished: dict[str, Any]) -> None:
    job = fine_tune_job("too-proud")
    job["spec"]["training"]["maxSteps"] = 2
    job["spec"]["evaluation"]["gates"] = [{"metric": "evalLoss", "ratioToBaseMax": "0.01"}]
    kube.apply(job)
    kube.wait_for("too-proud to fail at its gate", lambda: is_true(kube.get("ftj", "too-proud", NAMESPACE), "Failed"))
    failed = condition(kube.get("ftj", "too-proud", NAMESPACE), "Failed")
    assert failed["reason"] == "GateFailed"
    assert "evalLoss" in failed["message"]
    assert "0.01" in failed["message"]
    assert kube.get("job", "too-proud-publish", NAMESPACE) is None


def test_suspend_saves_and_goes_on(kube: Kube, finished: dict[str, Any]) -> None:
    kube.apply(long_job("paused"))
    kube.wait_for("paused to train", lambda: _step(kube, "paused") > 1)
    kube.run("patch", "ftj", "paused", "-n", NAMESPACE, "--type=merge", "-p", '{"spec":{"suspend":true}}')
    kube.wait_for("its pod to be gone", lambda: not pods_of(kube, "paused", "train"))
    kube.wait_for("Suspended to be said", lambda: is_true(kube.get("ftj", "paused", NAMESPACE), "Suspended"))
    kube.run("patch", "ftj", "paused", "-n", NAMESPACE, "--type=merge", "-p", '{"spec":{"suspend":false}}')
    kube.wait_for("paused to complete", lambda: is_true(kube.get("ftj", "paused", NAMESPACE), "Complete"))
    status = (kube.get("ftj", "paused", NAMESPACE) or {})["status"]
    assert status["resumes"] >= 1


def test_operator_runs_with_two_replicas_and_one_leader(kube: Kube, world: None) -> None:
    lease = kube.get("lease", "tuneloop-operator", SYSTEM)
    pods = {p["metadata"]["name"] for p in kube.list("pods", SYSTEM, "app.kubernetes.io/component=operator")}
    assert len(pods) == 2
    assert any((lease or {})["spec"]["holderIdentity"].startswith(pod) for pod in pods)


def _step(kube: Kube, name: str) -> float:
    status = (kube.get("ftj", name, NAMESPACE) or {}).get("status") or {}
    return float((status.get("progress") or {}).get("step", 0))
