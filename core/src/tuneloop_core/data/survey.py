"""The first pass over a dataset: every row checked, nothing kept but counts, digests and the first bad rows.

Decides what is fatal: any bad row is, because a run that silently drops data is worse than one that waits for a
mended file. Never tokenizes.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from tuneloop_core.data.columns import Columns
from tuneloop_core.data.fields import names
from tuneloop_core.data.files import DatasetError, Record, file_name, read_records
from tuneloop_core.data.objectives import LEARNS_FROM, mismatch
from tuneloop_core.data.rows import EXPECTED, BadRowError, ClassRow, Format, Row, UnpairedRow, detect, parse
from tuneloop_core.data.seen import Digests, digest

SHOWN = 10
MAX_CLASSES = 1000
COPIES_ALLOWED = 0.5  # share of a validation file that may be copies of training rows


@dataclass
class Survey:
    """What one pass saw."""

    format: Format
    seed: int = 0
    rows: int = 0  # good ones, of all files
    held_out: int = 0  # of them, those of the validation files
    duplicates: int = 0  # rows equal to one before them on their side of the split
    leaked: int = 0  # held-out rows that ask what a training row asks
    copied: int = 0  # of them, those that are equal to a training row
    bad_rows: int = 0
    bad: list[str] = field(default_factory=list)  # "train.jsonl line 3: ...", the first ten
    smallest_hash: int = 2**64
    train_labels: Counter[str] = field(default_factory=Counter)
    validation_labels: Counter[str] = field(default_factory=Counter)
    columns: list[str] = field(default_factory=list)  # of the first row, as the file has them
    unmapped: str = ""  # words for what dataset.columns names and no row has
    _seen: Digests = field(default_factory=Digests, repr=False)
    _held_rows: Digests = field(default_factory=lambda: Digests(counted=True), repr=False)
    _held_groups: Digests = field(default_factory=lambda: Digests(counted=True), repr=False)

    @property
    def exact(self) -> bool:
        """Whether every row could be compared; if not, duplicates, leaked and copied are lower bounds."""
        return not (self._seen.full or self._held_rows.full or self._held_groups.full)

    @property
    def labels(self) -> list[str]:
        """The classes, in the order that numbers them: by number where all are numbers, else by name."""
        found = self.train_labels | self.validation_labels
        numeric = all(name.removeprefix("-").isdecimal() for name in found)
        return sorted(found, key=int) if numeric else sorted(found)

    def hold_out(self, row: Row) -> None:
        """Count one good row of a validation file; all of them come before the first training row."""
        self.rows += 1
        self.held_out += 1
        self.duplicates += self._held_rows.add(_row_digest(row))
        self._held_groups.add(group_hash(row, self.seed))
        _count_label(self.validation_labels, row)

    def add(self, row: Row) -> None:
        """Count one good row of a training file."""
        self.rows += 1
        group, whole = group_hash(row, self.seed), _row_digest(row)
        self.smallest_hash = min(self.smallest_hash, group)
        self.duplicates += self._seen.add(whole)
        self.leaked += self._held_groups.take(group)
        self.copied += self._held_rows.take(whole)
        _count_label(self.train_labels, row)

    def reject(self, record: Record, problem: str) -> None:
        """Count one bad row and keep its words if it is among the first."""
        self.bad_rows += 1
        if len(self.bad) < SHOWN:
            self.bad.append(f"{record.place}: {problem}")

    def require_good(self) -> None:
        """Raise ``DatasetError`` when a row was bad, there was none, or they cannot be learned from or measured on."""
        if self.unmapped and self.rows + self.bad_rows:
            raise DatasetError(self.unmapped)
        if self.bad_rows:
            total = self.rows + self.bad_rows
            verb = "is" if self.bad_rows == 1 else "are"
            raise DatasetError(
                f"{self.bad_rows} of {total} rows {verb} bad: {'; '.join(self.bad)}. {expectation(self.format)}"
            )
        if not self.rows:
            raise DatasetError(f"the dataset is empty: no row in any file. {expectation(self.format)}")
        if self.copied > COPIES_ALLOWED * self.held_out:
            raise DatasetError(_copied(self.copied, self.held_out))
        self._require_labels()

    def _require_labels(self) -> None:
        found = self.labels
        if self.format is Format.UNPAIRED_PREFERENCE and len(found) == 1:
            raise DatasetError(f"label is {found[0]} in every row; KTO learns from liked and disliked answers")
        if self.format is not Format.CLASSIFICATION:
            return
        if len(found) > MAX_CLASSES:
            shown = ", ".join(found[:3])
            raise DatasetError(
                f"label has more than {MAX_CLASSES} different values ({shown}, ...): name classes with it"
            )
        if len(found) == 1:
            raise DatasetError(f"label is {found[0]} in every row; a classifier needs two classes or more")
        if self.held_out and (strange := self.validation_labels.keys() - self.train_labels.keys()):
            raise DatasetError(f"label {names(strange)} is in the validation file only: add rows of it for training")


@dataclass(frozen=True)
class Reading:
    """How the rows of a dataset are to be understood."""

    columns: Columns = field(default_factory=Columns)
    objective: str = "SFT"
    seed: int = 0
    root: Path | None = None  # the dataset's folder: files are named below it

    def name(self, path: Path) -> str:
        """A file as messages and the report name it."""
        return file_name(path, self.root)


def survey(
    paths: Iterable[Path],
    wanted: Format,
    has_template: bool,
    validation: Iterable[Path] = (),
    reading: Reading | None = None,
) -> Survey:
    """Check every row of the files; ``require_good`` then says whether they will do."""
    files, held_out, reading = tuple(paths), tuple(validation), reading or Reading()
    columns = reading.columns
    format_ = resolve_format((*files, *held_out), wanted, reading)
    result, later = Survey(format_, reading.seed), Survey(format_)  # held-out rows first, complaints on them last
    for record in records_of(held_out, columns, reading.root):
        try:
            result.hold_out(row_of(record, format_, has_template, columns))
        except BadRowError as error:
            later.reject(record, str(error))
    for record in records_of(files, columns, reading.root):
        result.columns = result.columns or sorted(record.value or ())
        try:
            result.add(row_of(record, format_, has_template, columns))
        except BadRowError as error:
            result.reject(record, str(error))
    result.bad_rows += later.bad_rows
    result.bad = [*result.bad, *later.bad][:SHOWN]
    result.unmapped = _unmapped(columns, result.columns)
    return result


def read_rows(
    paths: Iterable[Path], format_: Format, has_template: bool, columns: Columns | None = None
) -> Iterator[tuple[Record, Row]]:
    """The rows of files that a survey found good, each with the place it came from."""
    columns = columns or Columns()
    for record in records_of(paths, columns):
        yield record, row_of(record, format_, has_template, columns)


def resolve_format(paths: Iterable[Path], wanted: Format, reading: Reading) -> Format:
    """The format by the first readable record when it is not named; raises ``DatasetError``."""
    found = wanted if wanted is not Format.AUTO else _detected(paths, wanted, reading)
    if words := mismatch(reading.objective, found):
        raise DatasetError(words)
    return found


def _detected(paths: Iterable[Path], wanted: Format, reading: Reading) -> Format:
    first_problem, columns, objective = "", reading.columns, reading.objective
    for record in records_of(paths, columns, reading.root):
        if record.value is None:
            first_problem = first_problem or f"{record.place}: {record.problem}"
            continue
        try:
            return detect(columns.rename(record.value), LEARNS_FROM[objective])
        except BadRowError as error:
            words = f"{error}{columns.missing(record.value)}. {expectation(wanted, objective)}"
            raise DatasetError(f"{record.place}: {words}. {_RENAME}") from None
    if first_problem:
        raise DatasetError(f"no line could be read: {first_problem}. {expectation(wanted, objective)}")
    raise DatasetError(f"the dataset is empty: no row in any file. {expectation(wanted, objective)}")


_RENAME = "Other names are mapped by dataset.columns, such as {prompt: question, completion: answer}"


def expectation(format_: Format, objective: str = "SFT") -> str:
    """What a line should look like, in words for the user."""
    if format_ is Format.AUTO:
        return "Each line should be one of " + " or ".join(EXPECTED[each] for each in LEARNS_FROM[objective])
    return f"Each line should be {EXPECTED[format_]}"


def group_hash(row: Row, seed: int) -> int:
    """A 64-bit hash of what a row asks, salted with the seed; the split hangs on it, and what counts as leaked."""
    return digest(row.group(), seed.to_bytes(8, "big"))


def _row_digest(row: Row) -> int:
    return digest(json.dumps(row.as_json(), sort_keys=True))


def _count_label(labels: Counter[str], row: Row) -> None:
    if not isinstance(row, ClassRow | UnpairedRow):
        return
    name = str(row.label).lower() if isinstance(row, UnpairedRow) else str(row.label)
    if name in labels or len(labels) <= MAX_CLASSES:
        labels[name] += 1


def _unmapped(columns: Columns, found: list[str]) -> str:
    if not columns.unseen:
        return ""
    pairs = ", ".join(f"{ours}: {theirs}" for ours, theirs in columns.names.items() if theirs in columns.unseen)
    return f"dataset.columns says {pairs}, but no row has such a column; the first row has {names(found)}"


def _copied(copied: int, held_out: int) -> str:
    share = "all" if copied == held_out else f"{copied} of"
    return (
        f"the validation set is the training set: {share} {held_out} held-out rows are copies of training rows, so "
        "that evaluation would only measure what was learned by heart. Hold out other rows, or remove the validation "
        "file: dataset.validation.fraction of the rows is then held out"
    )


def records_of(paths: Iterable[Path], columns: Columns, root: Path | None = None) -> Iterator[Record]:
    """Every record of the files, in their order, with its place below the dataset's folder."""
    return chain.from_iterable(read_records(path, columns.wanted, root) for path in paths)


def row_of(record: Record, format_: Format, has_template: bool, columns: Columns) -> Row:
    """A record as a row of that format; raises ``BadRowError``, also for a record that could not be read."""
    if record.value is None:
        raise BadRowError(record.problem)
    try:
        return parse(columns.rename(record.value), format_, has_template)
    except BadRowError as error:
        raise BadRowError(f"{error}{columns.missing(record.value)}") from None
