"""Token lengths of a dataset as exact percentiles in flat memory: a count per length, never a list of rows."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Lengths:
    """Counts of rows by their length in tokens."""

    limit: int  # spec.training.maxSequenceLength; longer rows are cut to it
    counts: Counter[int] = field(default_factory=Counter)
    trained_tokens: int = 0

    def add(self, length: int, trained: int) -> None:
        """Count one row: its full length, and the tokens that carry loss after cutting."""
        self.counts[length] += 1
        self.trained_tokens += trained

    @property
    def rows(self) -> int:
        """Rows counted."""
        return self.counts.total()

    @property
    def tokens(self) -> int:
        """Tokens after cutting to the limit."""
        return sum(min(length, self.limit) * count for length, count in self.counts.items())

    @property
    def truncated(self) -> int:
        """Rows longer than the limit."""
        return sum(count for length, count in self.counts.items() if length > self.limit)

    @property
    def longest(self) -> int:
        """The longest row, uncut."""
        return max(self.counts, default=0)

    def percentile(self, percent: int) -> int:
        """The smallest length that at least ``percent`` of the rows do not exceed."""
        wanted, seen = self.rows * percent, 0
        for length in sorted(self.counts):
            seen += self.counts[length]
            if seen * 100 >= wanted:
                return length
        return 0

    def histogram(self) -> list[tuple[int, int]]:
        """(upper bound, rows) with bounds doubling from 32, empty ends left out."""
        buckets: Counter[int] = Counter()
        for length, count in self.counts.items():
            buckets[max(32, 1 << (length - 1).bit_length()) if length else 32] += count
        return sorted(buckets.items())
