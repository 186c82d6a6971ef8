"""The plan in words: what was computed, from what, and where a job does not fit, what would. Never computes a size."""

from collections.abc import Sequence

from tuneloop_core.api.finetunejob_status import PlanStatus
from tuneloop_core.api.shape import ModelShape
from tuneloop_core.plan.accelerators import Accelerator
from tuneloop_core.plan.machines import MARGIN, Choice, Fit
from tuneloop_core.plan.memory import Memory
from tuneloop_core.plan.parameters import matrices
from tuneloop_core.plan.steps import StepPlan

MOST_NAMED = 4


def gib(size: float) -> str:
    """``7.3 GiB``."""
    return f"{size / 2**30:.1f} GiB"


def plan(steps: StepPlan, status: PlanStatus) -> str:
    """Steps, memory, time and price in one sentence or two."""
    parts = [f"{steps.message}. Peak memory about {gib(status.memory_bytes)}"]
    if status.memory_limit_bytes:
        parts.append(f"of {gib(status.memory_limit_bytes)}")
    parts.append(f"in packs of {status.pack_tokens} tokens{_way(status.recompute, status.shards)}")
    if status.estimated_duration:
        tasks = f", {status.tasks_duration} of it for evaluation.tasks," if status.tasks_duration else ""
        parts.append(f"and {status.estimated_duration}{tasks}")
    if status.price:
        parts.append(f"at about {status.price:.2f} {status.currency}")
    return " ".join(parts).rstrip(",")


def devices(accelerators: int, nodes: int) -> str:
    """So many over which the weights are split."""
    several = f", nodes: {nodes}" if nodes > 1 else ""
    return f"resources.accelerators: {accelerators}{several}, over which the weights are then split"


def _way(recompute: bool, shards: int) -> str:
    split = f", the weights split over {shards} accelerators" if shards > 1 else ""
    return f"{' with recompute' * recompute}{split}"


def accelerator(fit: Fit, choice: Choice, small: Sequence[Accelerator]) -> str:
    """Which accelerator the plan is for, and which of those that the job may get are too small."""
    where = {
        "selector": "as pod.nodeSelector says",
        "nodes": "by the cluster's node labels",
        "slice": "by the resource's name",
        "table": "the smallest of the table that it fits, since neither nodes nor pod.nodeSelector tell which it gets",
    }[choice.source]
    slow = "" if fit.kind.bfloat16 else ", in float32, since it has no bfloat16 units"
    told = f"Planned for {fit.kind.name}{slow}, {where}"
    if not small:
        return told
    return f"{told}; too small are {_named(small)}: keep it off them by pod.nodeSelector nvidia.com/gpu.product"


def tight(need: int, limit: int) -> str:
    """A job that may run out of memory and is tried."""
    return (
        f"The estimate of {gib(need)} is over the limit of {gib(limit)}, but within what estimates miss by or what "
        "bfloat16 saves: it is tried"
    )


def small_host(need: int, limit: int) -> str:
    """A limit of the pod's own memory that may be too small beside its accelerators."""
    return (
        f"Beside its accelerators the pod takes up to {gib(need)}, and pod.resources.limits.memory allows "
        f"{gib(limit)}: if it ends as OOMKilled, set {_whole_gib(need)}Gi in a new job, or leave the limit out"
    )


def no_fit_cpu(memory: Memory, need: int, limit: int, remedies: Sequence[str]) -> str:
    """Why a job on CPU is not begun, and what would let it."""
    raised = f"pod.resources.limits.memory: {_whole_gib(need)}Gi"
    return (
        f"training needs about {gib(need)} and pod.resources.limits.memory allows {gib(limit)} ({_parts(memory)}). "
        f"No pod was made. Would fit: {'; or '.join([raised, *remedies])}. The spec is fixed: make a new job with it"
    )


def no_fit_accelerator(fit: Fit, choice: Choice, wider: Sequence[Accelerator], remedies: Sequence[str]) -> str:
    """Why a job on an accelerator is not begun, and what would let it."""
    which = {
        "selector": "which pod.nodeSelector names",
        "nodes": "the most that the cluster's nodes have for it",
        "slice": "a slice",
        "table": "the largest of the table",
    }[choice.source]
    larger = f"an accelerator with more memory: {_named(wider)}" if wider else ""
    ways = "; or ".join([*remedies, larger] if larger else remedies) or "a smaller model"
    return (
        f"training needs about {gib(fit.memory.total)} even in packs of {fit.load.pack_tokens} tokens"
        f"{_way(fit.load.recompute, fit.load.shards)}{' in float32' * (not fit.kind.bfloat16)}, and {fit.kind.name}, "
        f"{which}, has {gib(fit.kind.memory_bytes)} "
        f"({_parts(fit.memory)}){'; QLoRA does not split a model over accelerators' * (fit.load.adapter == 'QLoRA')}. "
        f"No pod was made. Would fit: {ways}. The spec is fixed: make a new job with it"
    )


def too_long(longest: int, asked: int, positions: int) -> str:
    """Rows that are longer than the model can see."""
    return (
        f"the longest row has {longest} tokens after cutting to training.maxSequenceLength {asked}, and the model's "
        f"positions end at {positions}. Set training.maxSequenceLength to at most {positions} in a new job"
    )


def no_targets(shape: ModelShape, target_modules: str, unknown: Sequence[str]) -> str:
    """Names of modules that the model does not have."""
    names = ", ".join(sorted({matrix.name for matrix in matrices(shape)}))
    return (
        f"method.lora.targetModules {target_modules}: no linear layer of this model ({shape.architecture}) is named "
        f'{" or ".join(unknown)}; it has {names}. Name some of them, or "all-linear", in a new job'
    )


def _parts(memory: Memory) -> str:
    large = sorted(vars(memory).items(), key=lambda part: -part[1])[:MOST_NAMED]
    return ", ".join(f"{name} {gib(size)}" for name, size in large)


def _named(kinds: Sequence[Accelerator]) -> str:
    return ", ".join(f"{kind.name} ({gib(kind.memory_bytes)})" for kind in kinds[:MOST_NAMED])


def _whole_gib(need: int) -> int:
    return -(-round(need * MARGIN) // 2**30)
