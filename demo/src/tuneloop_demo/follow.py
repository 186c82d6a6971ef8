"""Follows a FineTuneJob and a ModelDeployment to their end, by their status alone. Never changes them."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from tuneloop_demo.errors import DemoError
from tuneloop_demo.phases import LiveLine
from tuneloop_demo.target import Obj, Target

JOBS = "finetunejobs.tuneloop.dev"
DEPLOYMENTS = "modeldeployments.tuneloop.dev"
POLL_SECONDS = 2.0
LIMIT_SECONDS = 3 * 3600.0


def condition(resource: Obj, kind: str) -> Obj | None:
    """Return the condition of this type when it is True and about the spec as it is now."""
    generation = resource["metadata"].get("generation")
    for found in resource.get("status", {}).get("conditions", []):
        if (
            found["type"] == kind
            and found["status"] == "True"
            and found.get("observedGeneration") in (None, generation)
        ):
            return dict(found)
    return None


def trouble(resource: Obj) -> str | None:
    """Return why a person must act: the message of ``Failed`` or ``Stalled``."""
    for kind in ("Failed", "Stalled"):
        found = condition(resource, kind)
        if found is not None:
            name = f"{resource['kind']} {resource['metadata']['namespace']}/{resource['metadata']['name']}"
            return f"{name} is {kind} ({found['reason']}): {found['message']}"
    return None


def waiting_for(resource: Obj) -> str:
    """Return what the resource itself says it waits for."""
    found = condition(resource, "Reconciling")
    return str(found["message"]) if found else "waiting for the operator"


def job_line(job: Obj) -> str:
    """Return one line on where a job is: stage, and while training percent, loss, tokens/s and ETA."""
    status = job.get("status", {})
    progress = status.get("progress", {})
    stage = status.get("stage") or "Pending"
    if stage != "Training" or not progress:
        return f"{stage}: {waiting_for(job)}"
    parts = [f"{stage} {progress.get('percent', 0):3d} %", str(progress.get("phase", ""))]
    if progress.get("totalSteps"):
        parts.append(f"step {progress.get('step', 0):.1f}/{progress['totalSteps']}")
    if progress.get("loss") is not None:
        parts.append(f"loss {progress['loss']:.3f}")
    if progress.get("tokensPerSecond") is not None:
        parts.append(f"{progress['tokensPerSecond']:.0f} tok/s")
    if progress.get("eta"):
        parts.append(f"ETA {progress['eta']}")
    return "  ".join(part for part in parts if part)


def deployment_line(deployment: Obj) -> str:
    """Return one line on where a deployment is."""
    status = deployment.get("status", {})
    ready = f"{status.get('readyReplicas', 0)}/{status.get('replicas', 0)} replicas"
    adapters = ", ".join(f"{adapter['name']} {adapter['state']}" for adapter in status.get("adapters", []))
    return "  ".join(part for part in (ready, adapters, waiting_for(deployment)) if part)


@dataclass(frozen=True)
class _Watched:
    """What is followed: the kind's full name, the condition that ends it, and its line."""

    kind: str
    done: str
    line: Callable[[Obj], str]


def _follow(target: Target, watched: _Watched, name: str, namespace: str) -> Obj:
    """Poll until it is done; raise ``DemoError`` with the resource's own words on trouble."""
    live, deadline = LiveLine(), time.monotonic() + LIMIT_SECONDS
    try:
        while time.monotonic() < deadline:
            resource = _look(target, watched, name, namespace)
            if condition(resource, watched.done) is not None:
                return resource
            live.show(watched.line(resource))
            time.sleep(POLL_SECONDS)
    finally:
        live.end()
    raise DemoError(f"{watched.kind} {namespace}/{name} was not {watched.done} after three hours; see above")


def _look(target: Target, watched: _Watched, name: str, namespace: str) -> Obj:
    resource = target.get(watched.kind, name, namespace)
    if resource is None:
        raise DemoError(f"{watched.kind} {namespace}/{name} was deleted while the demo waited for it.")
    wrong = trouble(resource)
    if wrong is not None:
        raise DemoError(f"{wrong}\nLook at it: {target.prefix()} -n {namespace} describe {watched.kind} {name}")
    return resource


def follow_job(target: Target, name: str, namespace: str) -> Obj:
    """Follow a FineTuneJob until it is Complete."""
    return _follow(target, _Watched(JOBS, "Complete", job_line), name, namespace)


def follow_deployment(target: Target, name: str, namespace: str) -> Obj:
    """Follow a ModelDeployment until it is Ready."""
    return _follow(target, _Watched(DEPLOYMENTS, "Ready", deployment_line), name, namespace)
