"""``check/dataset-report.json``: all that check found, for people and later stages; the status holds the gist of it.

Written whether the dataset is good or bad. Shapes only; its keys are a contract (docs/contracts.md).
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tuneloop_core.data.lengths import Lengths
from tuneloop_core.data.packing import Packing
from tuneloop_core.data.survey import Survey

EXAMPLE_CHARACTERS = 20_000
LABELS_SHOWN = 100

Histogram = list[tuple[int, int]]  # (upper bound in tokens, documents)


@dataclass
class SideReport:
    """One side of the split; lengths in tokens, a preference's two documents counted each."""

    rows: int = 0
    tokens: int = 0  # after cutting to maxSequenceLength
    trained_tokens: int = 0
    truncated_rows: int = 0
    truncated_share: float = 0.0  # of the rows
    p50: int = 0
    p95: int = 0
    p99: int = 0
    longest: int = 0


@dataclass
class PackingReport:
    """How well the training documents fill packs of maxSequenceLength."""

    capacity: int
    packs: int
    tokens: int
    efficiency: float  # tokens / (packs x capacity)


@dataclass
class Report:
    """The whole report."""

    files: list[str] = field(default_factory=list)
    unused_files: list[str] = field(default_factory=list)
    format: str = ""
    objective: str = ""
    columns: dict[str, str] = field(default_factory=dict)  # as dataset.columns maps them
    rows: int = 0
    duplicates: int = 0
    leaked_rows: int = 0
    copied_rows: int = 0
    counts_exact: bool = True  # if not, the three before are lower bounds
    bad_rows: int = 0
    bad: list[str] = field(default_factory=list)
    untrained_rows: int = 0  # nothing left to train on after cutting to maxSequenceLength
    labels: dict[str, int] = field(default_factory=dict)  # rows of each class, the most frequent 100
    train: SideReport = field(default_factory=SideReport)
    validation: SideReport = field(default_factory=SideReport)
    train_histogram: Histogram = field(default_factory=list)
    validation_histogram: Histogram = field(default_factory=list)
    packing: PackingReport | None = None
    template: str = ""
    example: str = ""  # one row as the model sees it

    def note_survey(self, seen: Survey) -> None:
        """What the first pass found."""
        self.format = seen.format.value
        self.rows, self.duplicates, self.bad_rows, self.bad = seen.rows, seen.duplicates, seen.bad_rows, seen.bad
        self.leaked_rows, self.copied_rows, self.counts_exact = seen.leaked, seen.copied, seen.exact
        self.labels = dict((seen.train_labels + seen.validation_labels).most_common(LABELS_SHOWN))


@dataclass
class Side:
    """One side of the split while it is written."""

    lengths: Lengths
    rows: int = 0
    untrained: int = 0
    truncated: int = 0

    @property
    def kept(self) -> int:
        """Rows that were written."""
        return self.rows - self.untrained

    def report(self) -> SideReport:
        """Its counts."""
        lengths = self.lengths
        return SideReport(
            rows=self.kept,
            tokens=lengths.tokens,
            trained_tokens=lengths.trained_tokens,
            truncated_rows=self.truncated,
            truncated_share=round(self.truncated / self.rows, 4) if self.rows else 0.0,
            p50=lengths.percentile(50),
            p95=lengths.percentile(95),
            p99=lengths.percentile(99),
            longest=lengths.longest,
        )


def packing_report(packing: Packing) -> PackingReport:
    """A packing in numbers for people."""
    return PackingReport(packing.capacity, packing.packs, packing.tokens, round(packing.efficiency, 4))


def merged(parts: Iterable[Lengths], limit: int) -> Lengths:
    """The lengths of several sides together."""
    counts: Counter[int] = Counter()
    for part in parts:
        counts.update(part.counts)
    return Lengths(limit, counts)
