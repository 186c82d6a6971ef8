"""A job in a queue: this file plays Kueue's part by its contract, which is spec.suspend of the Job and its labels.

Kueue admits by setting ``suspend: false`` together with the flavor's node selector, and preempts by setting it back.
"""

from typing import Any

import pytest
from e2e_kube import Kube, condition, is_true
from e2e_world import NAMESPACE, long_job, pods_of

pytestmark = pytest.mark.usefixtures("world")
NAME = "queued"
QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"


def test_a_queue_starts_preempts_and_starts_again(kube: Kube) -> None:
    job = long_job(NAME)
    job["metadata"]["labels"] = {QUEUE: "gpus"}
    job["spec"]["priority"] = "low"
    kube.apply(job)

    _wait_for_place(kube)
    made = _train_job(kube)
    assert made["spec"]["suspend"] is True
    assert made["metadata"]["labels"][QUEUE] == "gpus"
    assert made["metadata"]["labels"][PRIORITY] == "low"
    assert kube.get("job", f"{NAME}-check", NAMESPACE)["metadata"]["labels"].get(QUEUE) is None, "CPU stages queue"

    kube.run("patch", "ftj", NAME, "-n", NAMESPACE, "--type=merge", "-p", '{"spec":{"priority":"high"}}')
    kube.wait_for(
        "the queue to hear of the priority", lambda: _train_job(kube)["metadata"]["labels"][PRIORITY] == "high"
    )

    _admit(kube)
    kube.wait_for("a checkpoint", lambda: (_status(kube).get("checkpoint") or {}).get("step", 0) > 1)
    _patch_job(kube, '{"spec":{"suspend":true}}')  # preempted
    kube.wait_for("the pod to save and go", lambda: not pods_of(kube, NAME, "train"))
    _wait_for_place(kube)
    assert _train_job(kube)["metadata"]["uid"] == made["metadata"]["uid"], "a preempted Job is waited for, not remade"

    kube.run("patch", "ftj", NAME, "-n", NAMESPACE, "--type=merge", "-p", '{"spec":{"suspend":true}}')
    kube.wait_for(
        "the place in the queue to be given back", lambda: kube.get("job", f"{NAME}-train", NAMESPACE) is None
    )
    kube.wait_for("Suspended to be said", lambda: is_true(kube.get("ftj", NAME, NAMESPACE), "Suspended"))
    kube.run("patch", "ftj", NAME, "-n", NAMESPACE, "--type=merge", "-p", '{"spec":{"suspend":false}}')
    kube.wait_for("a new place in the queue", lambda: kube.get("job", f"{NAME}-train", NAMESPACE))
    _wait_for_place(kube)

    _admit(kube)
    kube.wait_for(f"{NAME} to complete", lambda: is_true(kube.get("ftj", NAME, NAMESPACE), "Complete"))
    assert _status(kube)["resumes"] >= 1


def _wait_for_place(kube: Kube) -> None:
    def waiting() -> bool:
        reason = condition(kube.get("ftj", NAME, NAMESPACE), "Reconciling").get("reason")
        return reason == "QueueWaiting"

    kube.wait_for("QueueWaiting to be said", waiting, explain=lambda: str(_status(kube)))


def _admit(kube: Kube) -> None:
    """What Kueue sends: the flavor's node selector and the start, in one update."""
    flavor = '{"spec":{"suspend":false,"template":{"spec":{"nodeSelector":{"kubernetes.io/os":"linux"}}}}}'
    _patch_job(kube, flavor)
    kube.wait_for("the train pod", lambda: pods_of(kube, NAME, "train"))
    assert pods_of(kube, NAME, "train")[0]["spec"]["nodeSelector"] == {"kubernetes.io/os": "linux"}


def _patch_job(kube: Kube, patch: str) -> None:
    kube.run("patch", "job", f"{NAME}-train", "-n", NAMESPACE, "--type=merge", "-p", patch)


def _train_job(kube: Kube) -> dict[str, Any]:
    found = kube.get("job", f"{NAME}-train", NAMESPACE)
    assert found, "the train Job is gone"
    return found


def _status(kube: Kube) -> dict[str, Any]:
    status: dict[str, Any] = (kube.get("ftj", NAME, NAMESPACE) or {}).get("status") or {}
    return status
