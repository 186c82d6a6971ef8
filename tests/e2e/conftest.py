"""The e2e tier's world: the local cluster, the images, the hub and the chart, made once and shared by all its tests.

The namespaces of an earlier run are removed first; the cluster stays up afterwards, so that a person can look.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2e_kube import Kube, is_true
from e2e_node import kill_container, slow_down
from e2e_world import NAMESPACE, RIGHT_TOKEN, SYSTEM, fill_hub, long_job, pods_of, token_secret

from tuneloop_demo import chart, hub
from tuneloop_demo.target import Target, bring_up, provide_images


@pytest.fixture(scope="session")
def target() -> Target:
    """The local cluster with its images loaded."""
    return bring_up()


@pytest.fixture(scope="session")
def kube(target: Target) -> Kube:
    """kubectl as the cluster's administrator."""
    return Kube(Path(target.kubectl[0]), Path(target.kubectl[2]))


@pytest.fixture(scope="session")
def world(target: Target, kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tuneloop installed by its chart, and a hub; a fresh namespace under restricted Pod Security."""
    kube.run("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=true", timeout=600)
    images = provide_images(target)
    target.apply(hub.namespace(NAMESPACE))
    chart.install(target, images, [NAMESPACE])
    hub.deploy(target, images["hub-mirror"])
    fill_hub(target, tmp_path_factory.mktemp("hub"))
    kube.apply(token_secret("hub-token", RIGHT_TOKEN))


@pytest.fixture(scope="session")
def answers_job(kube: Kube) -> Callable[[], dict[str, Any]]:
    """Run the job 'answers' with its trainer and its operator killed on the way; tell what was noticed."""

    def run() -> dict[str, Any]:
        kube.apply(long_job("answers"))
        steps: list[float] = []
        kube.wait_for("the first step of 'answers'", lambda: _checkpoint(kube, steps) or steps, interval=0.5)
        assert slow_down(pods_of(kube, "answers", "train")[0], 0.2), "no cgroup of the training pod was found"
        checkpoint = kube.wait_for("a checkpoint of 'answers'", lambda: _checkpoint(kube, steps), interval=0.5)
        _kill_operator(kube)
        pod = pods_of(kube, "answers", "train")[0]
        assert kill_container(pod), "no process of the training pod was found"
        killed_after = max(steps)
        again = kube.wait_for("training to go on", lambda: _step_after(kube, pod["metadata"]["uid"]), interval=0.5)
        complete = lambda: is_true(kube.get("ftj", "answers", NAMESPACE), "Complete")  # noqa: E731
        kube.wait_for("'answers' to complete", complete, explain=lambda: str(_status(kube)))
        return {
            "job": kube.get("ftj", "answers", NAMESPACE),
            "steps": steps,
            "killed_after_step": killed_after,
            "checkpoint_step": checkpoint,
            "first_step_after_kill": again,
        }

    return run


def _status(kube: Kube) -> dict[str, Any]:
    status: dict[str, Any] = (kube.get("ftj", "answers", NAMESPACE) or {}).get("status") or {}
    return status


def _checkpoint(kube: Kube, steps: list[float]) -> int:
    """The checkpoint's step, once there is one; notes every new step seen on the way."""
    status = _status(kube)
    step = (status.get("progress") or {}).get("step", 0)
    if step and step not in steps:
        steps.append(step)
    return int((status.get("checkpoint") or {}).get("step", 0)) if len(steps) >= 3 else 0


def _step_after(kube: Kube, old_pod: str) -> float:
    """The first step of a training pod other than the killed one, as the status tells it."""
    running = [p for p in pods_of(kube, "answers", "train") if p["metadata"]["uid"] != old_pod]
    status = _status(kube)
    resumed = running and status.get("resumes", 0) >= 1
    return float((status.get("progress") or {}).get("step", 0)) if resumed else 0.0


def _kill_operator(kube: Kube) -> None:
    """Delete the leader's pod without grace: the other replica must take over."""
    lease = kube.get("lease", "tuneloop-operator", SYSTEM) or {}
    holder = str(lease["spec"]["holderIdentity"])
    pods = [p["metadata"]["name"] for p in kube.list("pods", SYSTEM, "app.kubernetes.io/component=operator")]
    leader = next(pod for pod in pods if holder.startswith(pod))
    kube.run("delete", "pod", leader, "-n", SYSTEM, "--grace-period=0", "--force")
