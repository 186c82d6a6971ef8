"""The first pass over a dataset: every row checked, nothing kept but counts and the first bad lines.

Decides what is fatal: any bad row is, because a run that silently drops data is worse than one that waits for a
mended file. Never tokenizes.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tuneloop_core.data.files import DatasetError, Record, read_records
from tuneloop_core.data.rows import EXPECTED, BadRowError, Format, Row, detect, parse

SHOWN = 10
MAX_TRACKED = 2_000_000  # digests kept to count duplicates: 16 bytes and a set slot each


@dataclass
class Survey:
    """What one pass saw."""

    format: Format
    seed: int = 0
    rows: int = 0
    duplicates: int = 0
    bad_rows: int = 0
    bad: list[str] = field(default_factory=list)  # "train.jsonl line 3: ...", the first ten
    smallest_hash: int = 2**64
    _seen: set[bytes] = field(default_factory=set, repr=False)

    def add(self, row: Row) -> None:
        """Count one good row."""
        self.rows += 1
        self.smallest_hash = min(self.smallest_hash, group_hash(row, self.seed))
        digest = hashlib.blake2b(json.dumps(row.as_json(), sort_keys=True).encode(), digest_size=16).digest()
        if digest in self._seen:
            self.duplicates += 1
        elif len(self._seen) < MAX_TRACKED:
            self._seen.add(digest)

    def reject(self, record: Record, problem: str) -> None:
        """Count one bad row and keep its words if it is among the first."""
        self.bad_rows += 1
        if len(self.bad) < SHOWN:
            self.bad.append(f"{record.file} line {record.line}: {problem}")

    def require_good(self) -> None:
        """Raise ``DatasetError`` when a row was bad or there was none."""
        if self.bad_rows:
            total = self.rows + self.bad_rows
            noun = "row is" if self.bad_rows == 1 else "rows are"
            raise DatasetError(
                f"{self.bad_rows} of {total} {noun} bad: {'; '.join(self.bad)}. {expectation(self.format)}"
            )
        if not self.rows:
            raise DatasetError(f"the dataset is empty: no row in any file. {expectation(self.format)}")


def survey(paths: Iterable[Path], wanted: Format, has_template: bool, seed: int = 0) -> Survey:
    """Check every row of the files; ``require_good`` then says whether they will do."""
    files = tuple(paths)
    result = Survey(format=resolve_format(files, wanted), seed=seed)
    for record in _records(files):
        try:
            result.add(_row(record, result.format, has_template))
        except BadRowError as error:
            result.reject(record, str(error))
    return result


def read_rows(paths: Iterable[Path], format_: Format, has_template: bool) -> Iterator[tuple[Record, Row]]:
    """The rows of files that a survey found good, each with the line it came from."""
    for record in _records(paths):
        yield record, _row(record, format_, has_template)


def resolve_format(paths: Iterable[Path], wanted: Format) -> Format:
    """The format by the first readable line when it is not named; raises ``DatasetError``."""
    if wanted is not Format.AUTO:
        return wanted
    first_problem = ""
    for record in _records(paths):
        if record.value is None:
            first_problem = first_problem or f"{record.file} line {record.line}: {record.problem}"
            continue
        try:
            return detect(record.value)
        except BadRowError as error:
            raise DatasetError(f"{record.file} line {record.line}: {error}. {expectation(wanted)}") from None
    if first_problem:
        raise DatasetError(f"no line could be read: {first_problem}. {expectation(wanted)}")
    raise DatasetError(f"the dataset is empty: no row in any file. {expectation(wanted)}")


def expectation(format_: Format) -> str:
    """What a line should look like, in words for the user."""
    if format_ is Format.AUTO:
        return "Each line should be one of " + " or ".join(EXPECTED.values())
    return f"Each line should be {EXPECTED[format_]}"


def group_hash(row: Row, seed: int) -> int:
    """A 64-bit hash of what a row asks, salted with the seed; the split and nothing else hangs on it."""
    digest = hashlib.blake2b(row.group().encode(), digest_size=8, salt=seed.to_bytes(8, "big")).digest()
    return int.from_bytes(digest, "big")


def _records(paths: Iterable[Path]) -> Iterator[Record]:
    for path in paths:
        yield from read_records(path)


def _row(record: Record, format_: Format, has_template: bool) -> Row:
    if record.value is None:
        raise BadRowError(record.problem)
    return parse(record.value, format_, has_template)
