"""Training that is killed, deleted, suspended and loses its node: no step is done twice beyond the last checkpoint,
and what comes out is, bit for bit, what comes out of the same job undisturbed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from e2e_kube import Kube, is_true
from e2e_node import kill_container, slow_down, start_kubelet, stop_kubelet
from e2e_training import TrainPod, TrainStage
from e2e_world import NAMESPACE, SYSTEM, fine_tune_job, pods_of

from tuneloop_demo import hub
from tuneloop_localcluster.nodeconfig import NODE_NAME
from tuneloop_localcluster.paths import cache

STEPS = 500
JOBS = ("undisturbed", "killed", "lost")


@dataclass
class Break:
    """One disturbance: the pod before, the pod after, and how far the first had come when it was met."""

    before: TrainPod
    after: TrainPod
    checkpoint: int  # the last that was written before the disturbance, as far as it is known
    reached: int


@dataclass
class Story:
    """What happened, and the three jobs at their end."""

    breaks: dict[str, Break] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)


def job(name: str) -> dict[str, Any]:
    """The same job under each name; one processor at most, so that each computes with one thread."""
    made = fine_tune_job(name, steps=STEPS)
    made["spec"]["pod"]["resources"]["limits"]["cpu"] = "1"
    made["spec"]["checkpoint"] = {"interval": "2s", "keep": 2}
    return made


@pytest.fixture(scope="module")
def story(kube: Kube, world: None) -> Story:
    """Three jobs of the same spec at once: one is left alone, one loses pods, one is suspended and loses its node."""
    told = Story()
    kube.apply(*(job(name) for name in JOBS))
    killed, lost = TrainStage(kube, "killed"), TrainStage(kube, "lost")

    first, pod = killed.next_pod(), lost.next_pod()  # both slowed down before anything is waited for
    suspended = _suspend(kube, lost, pod)
    first.train_some()
    assert kill_container(first.object), "no process of the training pod was found"
    second = killed.next_pod()
    told.breaks["kill -9"] = Break(first, second, first.checkpoint, first.steps[-1])

    second.train_some()
    checkpoint, reached = second.checkpoint, second.steps[-1]
    kube.run("delete", "pod", second.name, "-n", NAMESPACE, "--wait=false")
    third = killed.next_pod()
    told.breaks["pod deleted"] = Break(second, third, checkpoint, reached)
    assert slow_down(third.object, 1.0)

    for name in ("undisturbed", "killed"):  # their pods would go with the node
        told.jobs[name] = _completed(kube, name)

    lost.suspend(False)
    resumed = lost.next_pod()
    told.breaks["suspend and resume"] = Break(pod, resumed, suspended.checkpoint, suspended.reached)
    told.breaks["node lost"] = _lose_node(kube, lost, resumed.train_some())
    assert slow_down(told.breaks["node lost"].after.object, 1.0)
    told.jobs["lost"] = _completed(kube, "lost")
    return told


def _suspend(kube: Kube, stage: TrainStage, pod: TrainPod) -> Break:
    pod.train_some()
    checkpoint, reached = pod.checkpoint, pod.steps[-1]
    stage.suspend(True)
    suspended = lambda: is_true(kube.get("ftj", stage.job, NAMESPACE), "Suspended")  # noqa: E731
    kube.wait_for("Suspended to be said", suspended, explain=lambda: str(stage.status))
    return Break(pod, pod, checkpoint, reached)


def _lose_node(kube: Kube, stage: TrainStage, pod: TrainPod) -> Break:
    """Stop the kubelet, delete its Node, bring both back when its pod is given up. The container lives on so long."""
    assert slow_down(pod.object, 0.02), "no cgroup of the training pod was found"
    checkpoint, reached = pod.checkpoint, pod.steps[-1]
    stop_kubelet()
    try:
        kube.run("delete", "node", NODE_NAME, "--wait=false")
        kube.wait_for("the lost node's pod to be given up", lambda: kube.get("pod", pod.name, NAMESPACE) is None)
    finally:
        start_kubelet()
    after = stage.next_pod()
    for deployment, namespace in (
        ("tuneloop-operator", SYSTEM),
        ("tuneloop-gateway", SYSTEM),
        (hub.NAME, hub.NAMESPACE),
    ):
        kube.run("rollout", "status", f"deployment/{deployment}", "-n", namespace, "--timeout=10m", timeout=660)
    return Break(pod, after, checkpoint, reached)


def _completed(kube: Kube, name: str) -> dict[str, Any]:
    complete = lambda: is_true(kube.get("ftj", name, NAMESPACE), "Complete")  # noqa: E731
    kube.wait_for(f"'{name}' to complete", complete, explain=lambda: str(TrainStage(kube, name).status))
    found = kube.get("ftj", name, NAMESPACE)
    assert found
    return found


DISTURBANCES = ("kill -9", "pod deleted", "suspend and resume", "node lost")


@pytest.mark.parametrize("what", DISTURBANCES)
def test_training_went_on_from_its_last_checkpoint(story: Story, what: str) -> None:
    found = story.breaks[what]
    assert found.reached >= found.checkpoint > found.before.resumed_from
    assert found.after.uid != found.before.uid
    assert found.after.resumed_from >= found.checkpoint


@pytest.mark.parametrize("what", ["pod deleted", "suspend and resume"])
def test_no_step_is_lost_when_the_pod_is_told_to_end(story: Story, what: str) -> None:
    found = story.breaks[what]
    assert found.after.resumed_from >= found.reached


def test_kill_9_costs_what_came_after_the_checkpoint(story: Story) -> None:
    found = story.breaks["kill -9"]
    assert found.after.resumed_from == found.checkpoint
    assert found.reached > found.checkpoint


@pytest.mark.parametrize("name", ["killed", "lost"])
def test_the_result_is_that_of_the_undisturbed_job(story: Story, name: str) -> None:
    status, calm = story.jobs[name]["status"], story.jobs["undisturbed"]["status"]
    assert status["curve"] == calm["curve"]
    assert status["progress"]["loss"] == calm["progress"]["loss"]
    assert status["evaluation"] == calm["evaluation"]
    assert _weights(status) == _weights(calm)


@pytest.mark.parametrize("name", ["killed", "lost"])
def test_the_status_tells_what_happened(story: Story, name: str) -> None:
    status = story.jobs[name]["status"]
    assert status["resumes"] == 2
    assert story.jobs["undisturbed"]["status"].get("resumes", 0) == 0
    assert status["checkpoint"]["step"] == STEPS
    assert not status.get("notices")


def test_what_was_told_to_end_or_lost_its_node_did_not_count_as_a_try(kube: Kube, story: Story) -> None:
    failed = {name: (kube.get("job", f"{name}-train", NAMESPACE) or {})["status"].get("failed", 0) for name in JOBS}
    assert failed == {"undisturbed": 0, "killed": 1, "lost": 0}
    assert not pods_of(kube, "lost", "train")


def _weights(status: dict[str, Any]) -> bytes:
    """The published adapter's weights, read from the store's volume on this machine."""
    folder = Path(status["artifact"]["path"]) / "adapter_model.safetensors"
    (found,) = cache().full.volumes.glob(f"*/{folder}")
    return found.read_bytes()
