"""Which machine a job may get, as far as spec, node labels and table tell. Never asks a cluster."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tuneloop_core.api.shape import ModelShape
from tuneloop_core.plan.accelerators import MIB, Accelerator, NodeGroup, find, present, table
from tuneloop_core.plan.memory import FLOAT32, Load, Memory, estimate

PRODUCT_LABEL = "nvidia.com/gpu.product"
MEMORY_LABEL = "nvidia.com/gpu.memory"
NVIDIA_GPU = "nvidia.com/gpu"
MARGIN = 1.15
"""A job is refused only where its estimate is this many times the limit: estimates are within 15 % (docs/plan.md)."""
USUAL_MIB = 81920
"""The most that accelerators which are common by several have: A100-80GB, H100 and less. Not H200 or B200."""
SMALLEST_PACK = 256
"""Below this the trainer does not shrink its packs when memory runs out (batches.py, ``halved``)."""

_SLICE = re.compile(r"mig-[0-9]+g\.([0-9]+)gb")


@dataclass(frozen=True)
class Choice:
    """Accelerators that the job may get, by memory, and how that is known: selector, nodes, slice, table or unknown."""

    kinds: tuple[Accelerator, ...]
    source: str


@dataclass(frozen=True)
class Fit:
    """One way to train on one accelerator."""

    kind: Accelerator
    load: Load
    memory: Memory

    @property
    def fits(self) -> bool:
        """Whether the estimate is within the accelerator's memory."""
        return self.memory.total <= self.kind.memory_bytes

    @property
    def excess(self) -> float:
        """Estimate over memory."""
        return self.memory.total / self.kind.memory_bytes


def is_slice(resource: str) -> bool:
    """Whether it is a part of an accelerator (MIG), as nvidia's device plugin names them."""
    return _SLICE.search(resource) is not None


def choose(
    changes: Sequence[Accelerator], resource: str, selector: Mapping[str, str], groups: Sequence[NodeGroup] | None
) -> Choice:
    """The accelerators that a pod with this resource and node selector may get; ``groups`` None: nodes are not read."""
    kinds = table(changes)
    cut = _SLICE.search(resource)
    if cut is not None:
        name, mib = resource.partition("/")[2], int(cut[1]) * 1000**3 // MIB
        return Choice((Accelerator(name=name, memory_mib=mib, bf16_teraflops=1, price_per_hour=0),), "slice")
    if resource != NVIDIA_GPU:
        return Choice((), "unknown")
    named = find(kinds, selector.get(PRODUCT_LABEL, ""))
    if named is not None:
        return Choice((named,), "selector")
    matching = [group for group in groups or () if selector.items() <= group.labels.items()]
    found = present(kinds, matching)
    return Choice(found, "nodes") if found else Choice(kinds, "table")


def packs(largest: int, longest: int) -> list[int]:
    """Sizes of packs that the trainer comes down to on an accelerator by halves; the longest row stays whole."""
    smallest = max(longest, SMALLEST_PACK)
    sizes = [max(largest, longest)]
    while sizes[-1] > smallest:
        sizes.append(max(sizes[-1] // 2, longest))
    return sizes


def ways(load: Load, longest: int) -> list[Load]:
    """How the trainer can run a job, fastest first: as it is, in smaller packs, with recompute, split."""
    sizes = packs(load.pack_tokens, longest) if load.device == "cuda" else [load.pack_tokens]
    share = load.trained_tokens / max(1, load.pack_tokens)
    found = [replace(load, pack_tokens=size, trained_tokens=max(1, round(size * share))) for size in sizes]
    whole = found if load.recompute else [*found, *(replace(way, recompute=True) for way in found)]
    split = load.processes > load.shards
    return [*whole, *(replace(way, shards=load.processes) for way in whole)] if split else whole


def best_fit(shape: ModelShape, load: Load, longest: int, kinds: Sequence[Accelerator]) -> Fit:
    """The smallest accelerator that it fits without recompute, else with it, else split; or the nearest miss.

    ``kinds`` must not be empty and go up by memory. On the chosen one packs are as large as fit: the trainer halves
    them itself when memory runs out, recompute it does only when told.
    """
    every = [(kind, on(kind, way)) for kind in kinds for way in ways(load, longest)]
    fits = [Fit(kind, way, estimate(shape, way)) for kind, way in every]
    fitting = sorted((fit for fit in fits if fit.fits), key=_preference)
    return fitting[0] if fitting else min(fits, key=lambda miss: miss.excess)


def _preference(fit: Fit) -> tuple[int, ...]:
    """What comes first. A split model is gathered for every pack, which is dearer than recompute: large packs first."""
    if fit.load.shards == 1:
        return 1, fit.load.recompute
    return fit.load.shards, fit.kind.memory_mib, -fit.load.pack_tokens, fit.load.recompute


def fit_of(choice: Choice, shape: ModelShape, load: Load, longest: int) -> Fit:
    """The best fit among the accelerators that the job may get.

    Where nothing tells which those are and the weights may be split, a whole model is planned only where it fits what
    usually comes by several: split, it runs on larger ones too, while a whole one ends on smaller ones.
    """
    usual = tuple(kind for kind in choice.kinds if kind.memory_mib <= USUAL_MIB)
    if choice.source == "table" and load.processes > 1 and usual:
        found = best_fit(shape, load, longest, usual)
        if found.fits:
            return found
    return best_fit(shape, load, longest, choice.kinds)


def too_small(shape: ModelShape, fit: Fit, longest: int, kinds: Sequence[Accelerator]) -> tuple[Accelerator, ...]:
    """The accelerators that a job which is run like this does not fit in packs of any size."""
    run = fit.load.recompute, fit.load.shards
    alike = [way for way in ways(fit.load, longest) if (way.recompute, way.shards) == run]
    return tuple(
        kind for kind in kinds if kind.memory_bytes < min(estimate(shape, on(kind, way)).total for way in alike)
    )


def on(kind: Accelerator, load: Load) -> Load:
    """The same in the number format that this accelerator computes in."""
    return load if load.device != "cuda" else replace(load, number_bytes=2 if kind.bfloat16 else FLOAT32)
