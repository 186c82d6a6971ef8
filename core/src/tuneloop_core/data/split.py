"""Which rows are held out: by a hash of what the row asks, so that it never depends on order or chance.

The same row is on the same side in every run of one seed, also after rows were added; two rows that ask the same are
never on both sides.
"""

from dataclasses import dataclass
from decimal import Decimal

from tuneloop_core.data.rows import Row
from tuneloop_core.data.survey import group_hash


@dataclass(frozen=True)
class Split:
    """Rows whose hash lies below ``threshold`` (of 2**64) are held out."""

    threshold: int
    seed: int

    def holds_out(self, row: Row) -> bool:
        """Whether the row is for validation."""
        return group_hash(row, self.seed) < self.threshold


def make_split(fraction: Decimal, smallest_hash: int, seed: int) -> Split:
    """A split that holds out about ``fraction`` (0..1) of the rows, and at least one when the fraction is not 0."""
    if fraction <= 0:
        return Split(0, seed)
    return Split(max(int(fraction * 2**64), smallest_hash + 1), seed)
