"""The accelerators that a plan may be for: memory, speed and price. Defaults here, an administrator's table over them.

Memory is what the vendor's driver reports, speed the dense bfloat16 rate of its data sheet, price a rounded on-demand
list price of one accelerator with its share of the machine, in US dollars an hour, from memory of 2025: set your own.
Never asks a cluster.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import Field

from tuneloop_core.stages import Wire

MIB: Final = 2**20


class Accelerator(Wire):
    """One kind of accelerator. The parts of its name, cut at ``-``, are looked for in ``nvidia.com/gpu.product``."""

    name: str = Field(min_length=1, max_length=63)
    memory_mib: int = Field(gt=0)
    bf16_teraflops: float = Field(gt=0)  # of one without bfloat16 units, in float32
    price_per_hour: float = Field(ge=0)
    bfloat16: bool = True  # has units for it; without them the trainer computes in float32

    @property
    def memory_bytes(self) -> int:
        """Memory of one, bytes."""
        return self.memory_mib * MIB

    def matches(self, product: str) -> bool:
        """Whether a node's label names this kind: ``A100-80GB`` is in ``NVIDIA-A100-SXM4-80GB``."""
        return set(self.name.upper().split("-")) <= set(product.upper().replace("_", "-").split("-"))


def _kind(
    name: str, memory_mib: int, bf16_teraflops: float, price_per_hour: float, *, bfloat16: bool = True
) -> Accelerator:
    return Accelerator(
        name=name,
        memory_mib=memory_mib,
        bf16_teraflops=bf16_teraflops,
        price_per_hour=price_per_hour,
        bfloat16=bfloat16,
    )


DEFAULTS: Final = (
    _kind("T4", 15360, 8.1, 0.53, bfloat16=False),
    _kind("L4", 23034, 121, 0.80),
    _kind("A10", 23028, 125, 1.60),
    _kind("A10G", 23028, 70, 1.01),
    _kind("L40S", 46068, 362, 1.86),
    _kind("A100-40GB", 40960, 312, 2.75),
    _kind("A100-80GB", 81920, 312, 3.43),
    _kind("H100", 81559, 989, 6.88),
    _kind("H200", 143771, 989, 7.91),
    _kind("B200", 183359, 2250, 14.24),
)


def table(changes: Iterable[Accelerator]) -> tuple[Accelerator, ...]:
    """The defaults with an administrator's entries over those of the same name, by memory."""
    merged = {kind.name: kind for kind in (*DEFAULTS, *changes)}
    return tuple(sorted(merged.values(), key=lambda kind: (kind.memory_mib, kind.price_per_hour)))


def find(kinds: Sequence[Accelerator], product: str) -> Accelerator | None:
    """The kind that a product's label names; the longest name where several match."""
    found = [kind for kind in kinds if kind.matches(product)]
    return max(found, key=lambda kind: len(kind.name), default=None)


@dataclass(frozen=True)
class NodeGroup:
    """Nodes with the same accelerator and labels: what the cluster has, by its node labels."""

    product: str
    memory_mib: int  # 0 where no label says it
    labels: Mapping[str, str]


def present(kinds: Sequence[Accelerator], groups: Iterable[NodeGroup]) -> tuple[Accelerator, ...]:
    """The kinds that the cluster has; a node's own label of memory wins over the table's."""
    found: dict[str, Accelerator] = {}
    for group in groups:
        kind = find(kinds, group.product)
        if kind is not None:
            memory = min(
                group.memory_mib or kind.memory_mib, found[kind.name].memory_mib if kind.name in found else 2**40
            )
            found[kind.name] = kind.model_copy(update={"memory_mib": memory})
    return tuple(sorted(found.values(), key=lambda kind: (kind.memory_mib, kind.price_per_hour)))


class PlanSettings(Wire):
    """What an administrator says about machines and money; the chart's ``plan`` values."""

    currency: str = Field(default="USD", min_length=1, max_length=8)
    cpu_price_per_hour: float = Field(default=0.04, ge=0)  # of one core, with its share of memory
    cpu_gigaflops: float = Field(default=30.0, gt=0)  # that training reaches on one core
    accelerators: list[Accelerator] = []  # over the defaults, by name
