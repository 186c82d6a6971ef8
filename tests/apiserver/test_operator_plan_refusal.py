"""A plan that does not fit, on the real API server: no train Job, words that stay whole, nodes that are read."""

import json
from collections.abc import Callable

from operator_api import wait_for
from operator_world import FETCHED, World

SHAPE = {
    "architecture": "llama", "hiddenSize": 4096, "intermediateSize": 14336, "layers": 32, "heads": 32,
    "keyValueHeads": 8, "headSize": 128, "vocabulary": 128256, "maxPositions": 8192,
}  # fmt: skip


def test_a_job_that_does_not_fit_makes_no_train_pod(world: World) -> None:
    world.settings["clusterScopedRights"] = True
    operator = world.start()
    world.job(pod={"resources": {"limits": {"memory": "4Gi"}}})
    world.succeed_stage("fetch", result=FETCHED | {"shape": SHAPE})
    world.succeed_stage("check")
    stalled = world.wait_condition("Stalled", reason="DoesNotFit")
    assert "pod.resources.limits.memory allows 4.0 GiB" in stalled["message"]
    feasible = world.condition("Feasible")
    assert feasible is not None
    assert (feasible["status"], feasible["reason"]) == ("False", "DoesNotFit")
    assert world.api.get("Job", world.namespace, "one-train") is None
    status = world.status()
    assert status["model"]["shape"]["layers"] == 32
    assert status["plan"]["totalParameters"] == 8_030_261_248
    assert sum(status["plan"]["memory"].values()) == status["plan"]["memoryBytes"]
    assert operator.end() == 0


def test_a_plan_goes_by_the_nodes_that_the_cluster_has(world: World, kubectl: Callable[..., str]) -> None:
    world.settings["clusterScopedRights"] = True
    world.start()
    labels = {"nvidia.com/gpu.product": "NVIDIA-L40S", "nvidia.com/gpu.memory": "46068", "pool": world.namespace}
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"gpu-{world.namespace}", "labels": labels}}
    kubectl("create", "-f", "-", stdin=json.dumps(node))
    world.job(resources={"accelerators": 1}, pod={"nodeSelector": {"pool": world.namespace}})
    world.succeed_stage("fetch", result=FETCHED | {"shape": SHAPE})
    world.succeed_stage("check")
    wait_for("the plan", lambda: world.status().get("plan"), show=world.status)
    plan = world.status()["plan"]
    assert (plan["accelerator"], plan["memoryLimitBytes"]) == ("L40S", 46068 * 2**20)
    assert plan["price"] > 0
    world.wait_job("one-train")
    kubectl("delete", "node", f"gpu-{world.namespace}")
