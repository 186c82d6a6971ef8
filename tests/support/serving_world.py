"""A ModelDeployment as a user makes it, and what controllers and the kubelet then do, played."""

from typing import Any

from operator_api import Obj, wait_for
from operator_world import FETCHED, World


def deployment(world: World, name: str = "chat", **spec: Any) -> Obj:
    """Make a ModelDeployment on CPU; ``spec`` overrides top-level fields."""
    body = {"model": {"uri": "hf://org/model"}, "resources": {"accelerators": 0}} | spec
    metadata = {"name": name, "namespace": world.namespace}
    return world.api.create(
        {"apiVersion": "tuneloop.dev/v1alpha1", "kind": "ModelDeployment", "metadata": metadata, "spec": body}
    )


def fetch_model(world: World, job: Obj, fetched: Obj = FETCHED) -> None:
    """The fetch of a deployment's model succeeds."""
    pod = world.run_pod(world.make_pod(job))
    world.end_pod(pod, {"stage": "fetch", "outcome": "Succeeded", "result": fetched})
    world.complete(job)


def wait_deployment(world: World, name: str) -> Obj:
    """Wait for the Deployment of a revision."""
    return dict(wait_for(f"Deployment {name}", lambda: world.api.get("Deployment", world.namespace, name)))


def wait_ready(world: World, name: str = "chat") -> Obj:
    """Wait for the condition Ready of a ModelDeployment."""
    return world.wait_condition("Ready", name, resource="ModelDeployment")


def with_model(world: World, **spec: Any) -> Obj:
    """Make a ModelDeployment whose model is fetched; the Deployment of its first revision, without a pod."""
    deployment(world, **spec)
    fetch_model(world, world.wait_job("chat-model"))
    return wait_deployment(world, "chat-r1")


def make_pod(world: World, found: Obj, suffix: str = "5d5f-x", node: str = "") -> Obj:
    """The pod that the controllers would make for a Deployment; only one that has a node may leave gracefully."""
    template, name = found["spec"]["template"], f"{found['metadata']['name']}-{suffix}"
    metadata = {"name": name, "namespace": world.namespace, "labels": template["metadata"]["labels"]}
    spec = template["spec"] | ({"nodeName": node} if node else {})
    return world.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


def start_server(world: World, found: Obj, ip: str, pod: Obj | None = None) -> Obj:
    """The pod of a Deployment, made unless it is given, ready at this address; and the Deployment's status."""
    pod = pod or make_pod(world, found)
    running = world.run_pod(pod, ip)
    world.pod_status(pod, running["status"] | {"conditions": [{"type": "Ready", "status": "True"}]})
    all_answer(world, found, 1)
    return pod


def all_answer(world: World, found: Obj, count: int) -> None:
    """The status of a Deployment all of whose pods, ``count``, are ready."""
    counts = dict.fromkeys(("replicas", "readyReplicas", "availableReplicas", "updatedReplicas"), count)
    status = counts | {"observedGeneration": found["metadata"]["generation"]}
    world.api.patch("Deployment", world.namespace, found["metadata"]["name"], {"status": status}, "status")
