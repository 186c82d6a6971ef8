"""FineTuneJob, the whole path on the real API server; the Job controller and the kubelet are played."""

import itertools

from operator_api import Obj, wait_for
from operator_world import TRAINED, World


def test_whole_path(world: World) -> None:
    operator = world.start()
    world.job()
    for stage in ("fetch", "check", "train", "publish"):
        world.succeed_stage(stage)
    complete = world.wait_condition("Complete")
    status = world.status()
    assert complete["reason"] == "Succeeded"
    assert status["stage"] == "Succeeded"
    assert [stage["state"] for stage in status["stages"]] == ["Succeeded"] * 5
    assert status["artifact"]["digest"] == "sha256:" + "d" * 64
    assert status["evaluation"]["tuned"]["evalLoss"] == 2.5
    assert status["plan"]["steps"] == 12
    assert {item["type"]: item["status"] for item in status["conditions"]} == {
        "Ready": "True",
        "Complete": "True",
        "Fetched": "True",
        "Checked": "True",
        "Planned": "True",
        "Feasible": "True",
        "Trained": "True",
        "Published": "True",
    }
    reasons = [event["reason"] for event in world.api.list("Event", world.namespace)]
    assert sorted(reasons) == [
        "CheckSucceeded",
        "FetchSucceeded",
        "PlanSucceeded",
        "PublishSucceeded",
        "Succeeded",
        "TrainSucceeded",
    ]
    assert operator.end() == 0


def test_user_error_stalls_and_heals(world: World) -> None:
    world.start()
    world.job()
    failed = world.fail_stage("fetch", "AccessDenied", "hf://org/model: the token was refused")
    stalled = world.wait_condition("Stalled", reason="AccessDenied")
    assert "hf://org/model: the token was refused" in stalled["message"]
    assert world.api.get("Job", world.namespace, "one-train") is None
    # Instead of waiting for 30 s: as if it had failed a minute ago.
    stages = world.status()["stages"]
    stages[0]["finishTime"] = "2020-01-01T00:00:00Z"
    world.api.patch("FineTuneJob", world.namespace, "one", {"status": {"stages": stages}}, "status")
    world.wait_job("one-fetch", not_uid=failed["metadata"]["uid"])
    world.succeed_stage("fetch")
    wait_for("Stalled to go", lambda: world.condition("Stalled") is None, show=world.status)
    world.wait_job("one-check")


def test_a_completed_job_without_message_is_run_again(world: World) -> None:
    world.start()
    world.job()
    job = world.wait_job("one-fetch")
    world.end_pod(world.run_pod(world.make_pod(job)), None)
    world.complete(job)
    world.wait_job("one-fetch", not_uid=job["metadata"]["uid"])
    world.succeed_stage("fetch")
    world.wait_job("one-check")


def test_a_stage_that_is_done_is_never_run_again(world: World) -> None:
    operator = world.start()
    world.job()
    world.succeed_stage("fetch")
    world.wait_job("one-check")
    world.api.delete("Job", world.namespace, "one-fetch")
    world.succeed_stage("check")
    world.wait_job("one-train")
    assert operator.end() == 0
    world.start()
    world.succeed_stage("train")
    world.wait_job("one-publish")
    assert world.api.get("Job", world.namespace, "one-fetch") is None


def test_a_missed_gate_fails_the_job(world: World) -> None:
    world.start()
    world.job(evaluation={"gates": [{"metric": "evalLoss", "ratioToBaseMax": "0.5"}]})
    for stage in ("fetch", "check", "train"):
        world.succeed_stage(stage)
    failed = world.wait_condition("Failed", reason="GateFailed")
    assert "missed by" in failed["message"]
    assert world.api.get("Job", world.namespace, "one-publish") is None
    assert world.condition("Stalled") is not None


def test_suspend_and_resume(world: World) -> None:
    world.start()
    world.job()
    for stage in ("fetch", "check"):
        world.succeed_stage(stage)
    job = world.wait_job("one-train")
    pod = world.run_pod(world.make_pod(job))
    world.api.patch("FineTuneJob", world.namespace, "one", {"spec": {"suspend": True}})
    wait_for(
        "the train Job to be suspended",
        lambda: world.api.must("Job", world.namespace, "one-train")["spec"].get("suspend"),
    )
    world.end_pod(pod, {"stage": "train", "outcome": "Failed", "reason": "Terminated"}, 143)
    world.api.delete("Pod", world.namespace, pod["metadata"]["name"])
    world.wait_condition("Suspended")
    assert world.status()["stage"] == "Suspended"
    world.api.patch("FineTuneJob", world.namespace, "one", {"spec": {"suspend": False, "retries": 5}})
    wait_for(
        "the train Job to go on with 5 retries",
        lambda: (
            not world.api.must("Job", world.namespace, "one-train")["spec"]["suspend"]
            and world.api.must("Job", world.namespace, "one-train")["spec"]["backoffLimit"] == 5
        ),
    )
    assert world.api.must("Job", world.namespace, "one-train")["metadata"]["uid"] == job["metadata"]["uid"]
    world.succeed_stage("train")
    world.wait_job("one-publish")


def test_a_foreign_job_of_our_name_is_not_adopted(world: World) -> None:
    world.start()
    pod = {"containers": [{"name": "x", "image": "x"}], "restartPolicy": "Never"}
    metadata = {"name": "one-fetch", "namespace": world.namespace}
    foreign = world.api.create(
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": {"spec": pod}}}
    )
    world.job()
    stalled = world.wait_condition("Stalled", reason="ForeignObject")
    assert "one-fetch" in stalled["message"]
    found = world.api.must("Job", world.namespace, "one-fetch")
    assert found["metadata"]["resourceVersion"] == foreign["metadata"]["resourceVersion"]


def test_a_failed_job_goes_on_when_its_retries_are_raised(world: World) -> None:
    operator = world.start()
    world.job(retries=1)
    for stage in ("fetch", "check"):
        world.succeed_stage(stage)
    first = world.wait_job("one-train")
    assert first["spec"]["backoffLimit"] == 1
    pod = world.run_pod(world.make_pod(first))
    world.end_pod(pod, None, 137)
    between = world.wait_condition("Reconciling", reason="PodFailed")
    assert "A new pod goes on from the last checkpoint" in between["message"]
    world.fail(first, "BackoffLimitExceeded")
    failed = world.wait_condition("Failed")
    assert "raise spec.retries above 1" in failed["message"]
    assert world.status()["stages"][3]["retriesUsed"] == 1
    assert operator.end() == 0

    world.api.patch("FineTuneJob", world.namespace, "one", {"spec": {"retries": 4}})
    world.start()
    again = world.wait_job("one-train-2")
    assert again["spec"]["backoffLimit"] == 2
    assert world.api.must("Job", world.namespace, "one-train")["metadata"]["uid"] == first["metadata"]["uid"]
    wait_for("Failed to go", lambda: world.condition("Failed") is None, show=world.status)
    world.end_pod(world.run_pod(world.make_pod(again)), {"stage": "train", "outcome": "Succeeded", "result": TRAINED})
    world.complete(again)
    world.succeed_stage("publish")
    world.wait_condition("Complete")
    assert world.api.get("Job", world.namespace, "one-train-3") is None


def test_a_store_that_went_with_its_namespace_is_made_again(world: World) -> None:
    """A namespace deleted and made again under its name keeps no claim, whatever the operator remembers of it."""
    world.start()
    world.job("before")
    world.wait_job("before-fetch")
    kind, name = "PersistentVolumeClaim", "tuneloop-store"
    first = world.api.must(kind, world.namespace, name)
    world.api.patch(kind, world.namespace, name, {"metadata": {"finalizers": None}})
    world.api.delete(kind, world.namespace, name)
    numbers = itertools.count()

    def asked_again() -> Obj | None:
        """One more job a look: the first may come before the watch has told that the claim is gone."""
        world.job(f"after-{next(numbers)}")
        return world.api.get(kind, world.namespace, name)

    again = wait_for("the claim to be made again", asked_again)
    assert again["metadata"]["uid"] != first["metadata"]["uid"]
