"""Stage check: every row of the dataset read, judged and tokenized before an accelerator is held.

Writes the normalised rows and their tokens to /work/data and a report beside its result. Two passes: the first looks
at the rows alone and stops at the first ten bad lines, the second renders and tokenizes them. Never needs a GPU, a
token or the network.
"""

import json
import logging
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path

from tuneloop_core.api.finetunejob import Training
from tuneloop_core.api.sources import DatasetSource
from tuneloop_core.data.files import DatasetError, DatasetFiles, Record, find_files
from tuneloop_core.data.lengths import Lengths
from tuneloop_core.data.rows import Format, Row
from tuneloop_core.data.split import make_split
from tuneloop_core.data.survey import SHOWN, Survey, expectation, read_rows, survey
from tuneloop_core.stages import CheckInput, CheckResult, Reason

from tuneloop_trainer.encode import EncodeError, Encoder, load_encoder
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.files import folder_aside, sync_folder, write_json
from tuneloop_trainer.paths import Paths
from tuneloop_trainer.tokens import TokenWriter

log = logging.getLogger("tuneloop")

REPORT = "check/dataset-report.json"
EXAMPLE_CHARACTERS = 600


@dataclass
class Report:
    """What is written beside the result, for people: the parts that a short message cannot hold."""

    files: list[str] = field(default_factory=list)
    rows: int = 0
    duplicates: int = 0
    bad_rows: int = 0
    bad: list[str] = field(default_factory=list)
    untrained_rows: int = 0  # nothing left to train on after cutting to maxSequenceLength
    train_histogram: list[tuple[int, int]] = field(default_factory=list)
    validation_histogram: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Side:
    """One side of the split while it is written."""

    lengths: Lengths
    untrained: int = 0


def run(stage_input: CheckInput, paths: Paths) -> CheckResult:
    """Check the dataset; raises ``DatasetInvalid`` with the first bad lines and what was expected."""
    report = Report()
    try:
        return _check(stage_input, paths, report)
    except DatasetError as error:
        raise StageError(Reason.DATASET_INVALID, str(error)) from error
    finally:
        write_json(paths.work / REPORT, asdict(report))


def _check(stage_input: CheckInput, paths: Paths, report: Report) -> CheckResult:
    source = DatasetSource.model_validate(stage_input.dataset)
    training = Training.model_validate(stage_input.training)
    encoder = load_encoder(paths.model)
    files = find_files(paths.dataset)
    report.files = [path.name for path in (*files.train, *files.validation)]
    seen = _survey(files, Format(source.format), encoder.has_template, training.seed, report)
    split = make_split(
        Decimal(0 if files.validation else source.validation.fraction), seen.smallest_hash, training.seed
    )
    with folder_aside(paths.work) as aside:
        writer = _Writer(encoder, training.max_sequence_length, aside, report)
        for record, row in read_rows(files.train, seen.format, encoder.has_template):
            writer.add("validation" if split.holds_out(row) else "train", record, row)
        for record, row in read_rows(files.validation, seen.format, encoder.has_template):
            writer.add("validation", record, row)
        writer.close(seen.format)
        shutil.rmtree(paths.data, ignore_errors=True)
        aside.rename(paths.data)
        sync_folder(paths.work)
    return writer.result(seen)


def _survey(files: DatasetFiles, wanted: Format, has_template: bool, seed: int, report: Report) -> Survey:
    seen = survey((*files.train, *files.validation), wanted, has_template, seed)
    report.rows, report.duplicates, report.bad_rows, report.bad = seen.rows, seen.duplicates, seen.bad_rows, seen.bad
    try:
        seen.require_good()
    finally:
        log.info("%d rows, %d bad, %d duplicates, format %s", seen.rows, seen.bad_rows, seen.duplicates, seen.format)
    if seen.format is Format.CHAT and not has_template:
        raise DatasetError(
            "the rows are conversations, but the model has no chat template: take an instruct model, or rows of "
            "prompt and completion"
        )
    return seen


class _Writer:
    """Writes both sides of the split: rows, tokens, counts."""

    def __init__(self, encoder: Encoder, limit: int, folder: Path, report: Report) -> None:
        self._encoder = encoder
        self._limit = limit
        self._report = report
        self._sides = {side: Side(Lengths(limit)) for side in ("train", "validation")}
        self._rows = {side: (folder / f"{side}.jsonl").open("w", encoding="utf-8") for side in self._sides}
        self._tokens = {side: TokenWriter(folder / side) for side in self._sides}
        self._example = ""
        self._template = ""

    def add(self, side: str, record: Record, row: Row) -> None:
        """Encode and write one row; a row that cannot be encoded is noted with its line."""
        try:
            encoded = self._encoder.encode(row)
        except EncodeError as error:
            self._note_bad(record, str(error))
            return
        if not self._example:
            self._example, self._template = self._encoder.example(row), self._encoder.method(row)
        cut = encoded.cut(self._limit)
        self._sides[side].lengths.add(len(encoded.ids), sum(cut.trained))
        if not any(cut.trained):
            self._sides[side].untrained += 1
            return
        self._rows[side].write(json.dumps(row.as_json(), ensure_ascii=False) + "\n")
        self._tokens[side].append(cut.ids, cut.trained)

    def close(self, format_: Format) -> None:
        """Finish the files; raises ``DatasetError`` if what is there cannot be trained on."""
        for stream in self._rows.values():
            stream.close()
        for tokens in self._tokens.values():
            tokens.__exit__(None, None, None)
        lengths = {side: each.lengths for side, each in self._sides.items()}
        self._report.untrained_rows = sum(each.untrained for each in self._sides.values())
        self._report.train_histogram = lengths["train"].histogram()
        self._report.validation_histogram = lengths["validation"].histogram()
        self._require_good(format_)

    def result(self, seen: Survey) -> CheckResult:
        """The counts, in the contract's shape."""
        train, validation = self._sides["train"], self._sides["validation"]
        both = _merged((train.lengths, validation.lengths), self._limit)
        return CheckResult(
            format=seen.format,
            rows=seen.rows,
            train_rows=train.lengths.rows - train.untrained,
            validation_rows=validation.lengths.rows - validation.untrained,
            train_tokens=train.lengths.tokens,
            trained_tokens=train.lengths.trained_tokens,
            validation_tokens=validation.lengths.tokens,
            max_tokens=both.longest,
            p50_tokens=both.percentile(50),
            p95_tokens=both.percentile(95),
            truncated_rows=both.truncated,
            template=self._template,
            example=_cut_text(self._example, EXAMPLE_CHARACTERS),
        )

    def _note_bad(self, record: Record, problem: str) -> None:
        self._report.bad_rows += 1
        if len(self._report.bad) < SHOWN:
            self._report.bad.append(f"{record.file} line {record.line}: {problem}")

    def _require_good(self, format_: Format) -> None:
        if self._report.bad_rows:
            shown = "; ".join(self._report.bad)
            raise DatasetError(f"{self._report.bad_rows} rows cannot be used with this model: {shown}")
        for side, each in self._sides.items():
            if each.lengths.rows == each.untrained:
                raise DatasetError(_nothing_left(side, each, self._limit, format_))


def _nothing_left(side: str, each: Side, limit: int, format_: Format) -> str:
    if each.untrained:
        return (
            f"all {each.untrained} rows of the {side} part are longer than maxSequenceLength {limit} before their "
            "answer begins: raise training.maxSequenceLength or shorten the prompts"
        )
    if side == "train":
        return f"no row is left to train on: all of them are held out. Add rows. {expectation(format_)}"
    return "no row is left to evaluate on: add rows, or a validation.jsonl beside train.jsonl"


def _merged(parts: Iterable[Lengths], limit: int) -> Lengths:
    merged = Lengths(limit)
    for part in parts:
        merged.counts.update(part.counts)
    return merged


def _cut_text(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
