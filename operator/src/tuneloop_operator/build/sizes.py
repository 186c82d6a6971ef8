"""Requests and limits of stage pods: what a user gives, over defaults that fit most. Pure."""

import math

from tuneloop_core.api.finetunejob import FineTuneJobSpec
from tuneloop_core.plan.machines import MARGIN
from tuneloop_core.settings import Settings
from tuneloop_operator.build.quantities import Amounts, parse, resources

Sizes = dict[str, dict[str, str]]

TRAIN_CPU: dict[str, Amounts] = {"requests": {"cpu": "1", "memory": "4Gi"}, "limits": {"memory": "8Gi"}}
"""Training on CPU: a model below a billion parameters."""


def stage_sizes(settings: Settings) -> Sizes:
    """CPU stages: the chart's sizes; no CPU limit, since downloads and checks end sooner without."""
    stages = settings.stages
    defaults: dict[str, Amounts] = {
        "requests": {"cpu": stages.cpu_request, "memory": stages.memory_request},
        "limits": {"memory": stages.memory_limit},
    }
    return resources(defaults, {}, {}, {})


def train_sizes(spec: FineTuneJobSpec, host_bytes: int = 0) -> Sizes:
    """The train pod: the user's ``pod.resources`` first, the accelerators on top; ``host_bytes`` as planned."""
    wanted, count = spec.pod.resources, spec.resources.accelerators
    devices: Amounts = {spec.resources.accelerator_resource: count} if count else {}
    defaults = accelerator_sizes(count, host_bytes) if count else TRAIN_CPU
    return resources(defaults, wanted.requests, wanted.limits, devices)


def train_memory_limit(spec: FineTuneJobSpec) -> int:
    """Bytes that the train pod may use; 0 without a limit."""
    return int(parse(train_sizes(spec)["limits"].get("memory", 0)))


def train_cores(spec: FineTuneJobSpec) -> float:
    """CPUs that the train pod may use, or where that has no limit, those that it asks for."""
    sizes = train_sizes(spec)
    return float(parse(sizes["limits"].get("cpu") or sizes["requests"]["cpu"]))


def accelerator_sizes(count: int, host_bytes: int = 0) -> dict[str, Amounts]:
    """Per accelerator: 4 CPUs to feed it, 16 GiB to load weights through, at most 64 GiB, or the plan and its margin.

    The request does not follow the plan: most of what it counts is pages of the model's files, which the kernel drops.
    """
    most = max(64 * count, math.ceil(host_bytes * MARGIN / 2**30))
    return {
        "requests": {"cpu": str(4 * count), "memory": f"{16 * count}Gi"},
        "limits": {"memory": f"{most}Gi"},
    }
