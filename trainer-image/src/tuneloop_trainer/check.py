"""Stage check: every row of the dataset read, judged and tokenized before an accelerator is held.

Writes the normalised rows and their tokens to /work/data and a report beside its result. Two passes: the first looks
at the rows alone and stops at the first ten bad lines, the second renders and tokenizes them. Never needs a GPU, a
token or the network.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path

from tuneloop_core.api.finetunejob import EvaluationSettings, Method, Training
from tuneloop_core.api.sources import DatasetSource
from tuneloop_core.data.columns import Columns
from tuneloop_core.data.files import DatasetError, DatasetFiles, Record, find_files, find_sides
from tuneloop_core.data.lengths import Lengths
from tuneloop_core.data.packing import pack_lengths
from tuneloop_core.data.rows import Format, Row
from tuneloop_core.data.split import make_split
from tuneloop_core.data.survey import SHOWN, Reading, Survey, expectation, records_of, row_of, survey
from tuneloop_core.stages import CheckInput, CheckResult, Reason

from tuneloop_trainer.dataset_report import EXAMPLE_CHARACTERS, Report, Side, merged, packing_report
from tuneloop_trainer.encode import Encoder, load_encoder
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.files import folder_aside, sync_folder, write_json
from tuneloop_trainer.paths import Paths
from tuneloop_trainer.token_cache import TokenCache, cache_key
from tuneloop_trainer.tokenizing import Item, Task, Tokenized, allowed_workers, tokenized
from tuneloop_trainer.tokens import TokenWriter

log = logging.getLogger("tuneloop")

REPORT = "check/dataset-report.json"
STATUS_EXAMPLE_CHARACTERS = 600


def run(stage_input: CheckInput, paths: Paths) -> CheckResult:
    """Check the dataset; raises ``DatasetInvalid`` with the first bad lines and what was expected."""
    task_tokens, task_passes = _try_tasks(stage_input, paths)
    result = _checked(stage_input, paths)
    _require_answers(EvaluationSettings.model_validate(stage_input.evaluation), Format(result.format))
    return result.model_copy(update={"task_tokens": task_tokens, "task_passes": task_passes})


def _checked(stage_input: CheckInput, paths: Paths) -> CheckResult:
    """From the cache where the same was checked before."""
    cache = TokenCache(paths.tokens, cache_key(stage_input, paths.model))
    if (kept := cache.restore(paths.data)) is not None:
        log.info("the same data was checked before, with the same tokenizer and settings: its tokens are taken")
        write_json(paths.work / REPORT, kept[1])
        return kept[0]
    report = Report()
    try:
        result = _check(stage_input, paths, report)
    except DatasetError as error:
        raise StageError(Reason.DATASET_INVALID, str(error)) from error
    finally:
        write_json(paths.work / REPORT, asdict(report))
    cache.keep(paths.data, result, report)
    return result


def _try_tasks(stage_input: CheckInput, paths: Paths) -> tuple[int, int]:
    """Ask rows of each of evaluation.tasks, and look its gates up: what does not work must not hold an accelerator.

    Returns what asking a model all of them costs, in tokens and in passes of one row.
    """
    evaluation = EvaluationSettings.model_validate(stage_input.evaluation)
    if not evaluation.tasks:
        return 0, 0
    from tuneloop_trainer.lmeval.scores import dry_run  # noqa: PLC0415 - needs torch, hidden where there are none

    found = dry_run(evaluation, load_encoder(paths.model), paths)
    log.info("evaluation.tasks will give %s, for some %d tokens a model", ", ".join(found.names), found.tokens)
    return found.tokens, found.passes


def _require_answers(evaluation: EvaluationSettings, found: Format) -> None:
    """Gates on what the rows cannot give: told before an accelerator is held, not after."""
    compared = [gate.metric for gate in evaluation.gates if gate.metric in ("exactMatch", "rougeL")]
    if found is Format.TEXT and compared:
        message = (
            f"evaluation.gates: {compared[0]} is not measured on plain text, which asks nothing. Gate on evalLoss or "
            "perplexity, or take rows with an answer: prompt and completion, or messages."
        )
        raise StageError(Reason.DATASET_INVALID, message)


def _check(stage_input: CheckInput, paths: Paths, report: Report) -> CheckResult:
    source = DatasetSource.model_validate(stage_input.dataset)
    training = Training.model_validate(stage_input.training)
    method = Method.model_validate(stage_input.method)
    reading = Reading(Columns(source.column_names), method.learns, training.seed, paths.dataset)
    encoder = load_encoder(paths.model)
    apart = source.validation.named
    files = find_sides(paths.dataset) if apart else find_files(paths.dataset, bool(source.files))
    _note_input(report, files, reading)
    seen = _survey(files, Format(source.format), encoder.has_template, reading, report)
    split = make_split(Decimal(0 if files.validation else source.validation.share), seen.smallest_hash, training.seed)
    workers = allowed_workers(seen.rows)
    log.info("tokenizing %s", f"with {workers} workers" if workers else "in this process")
    with folder_aside(paths.work) as aside:
        writer = _Writer(training, aside, report, seen)
        task = Task(
            seen.format, encoder.has_template, reading.columns, writer.classes, split, training.max_sequence_length
        )
        for item, row in tokenized(_sides(files, reading), encoder, paths.model, task, workers):
            if not (report.example or row.problem):
                _note_example(report, encoder, row_of(item[1], seen.format, encoder.has_template, reading.columns))
            writer.add(item, row)
        writer.close()
        shutil.rmtree(paths.data, ignore_errors=True)
        aside.rename(paths.data)
        sync_folder(paths.work)
    return writer.result()


def _sides(files: DatasetFiles, reading: Reading) -> Iterator[Item]:
    """Every record; those of a validation file are for validation, the others go by their hash."""
    yield from (("", record) for record in records_of(files.train, reading.columns, reading.root))
    yield from (("validation", record) for record in records_of(files.validation, reading.columns, reading.root))


def _note_example(report: Report, encoder: Encoder, row: Row) -> None:
    report.example = _cut_text(encoder.example(row), EXAMPLE_CHARACTERS)
    report.template = encoder.method(row)


def _note_input(report: Report, files: DatasetFiles, reading: Reading) -> None:
    report.files = [reading.name(path) for path in (*files.train, *files.validation)]
    report.unused_files = [reading.name(path) for path in files.unused]
    report.objective, report.columns = reading.objective, dict(reading.columns.names)


def _survey(files: DatasetFiles, wanted: Format, has_template: bool, reading: Reading, report: Report) -> Survey:
    seen = survey(files.train, wanted, has_template, files.validation, reading)
    report.note_survey(seen)
    try:
        seen.require_good()
    finally:
        log.info("%d rows, %d bad, %d duplicates, format %s", seen.rows, seen.bad_rows, seen.duplicates, seen.format)
    if files.validation and not seen.held_out:
        raise DatasetError(_none_held_out([reading.name(path) for path in files.validation]))
    if seen.format is Format.CHAT and not has_template:
        raise DatasetError(
            "the rows are conversations, but the model has no chat template: take an instruct model, or rows of "
            "prompt and completion"
        )
    return seen


class _Writer:
    """Writes both sides of the split: rows, tokens, counts."""

    def __init__(self, training: Training, folder: Path, report: Report, seen: Survey) -> None:
        self._training = training
        self._limit = training.max_sequence_length
        self._report = report
        self._seen = seen
        names = seen.labels if seen.format is Format.CLASSIFICATION else ()
        self.classes = {name: number for number, name in enumerate(names)}
        self._sides = {side: Side(Lengths(self._limit)) for side in ("train", "validation")}
        self._rows = {side: (folder / f"{side}.jsonl").open("w", encoding="utf-8") for side in self._sides}
        self._tokens = {side: TokenWriter(folder / side) for side in self._sides}
        if self.classes:
            write_json(folder / "labels.json", list(self.classes))

    def add(self, item: Item, row: Tokenized) -> None:
        """Write one row; one that could not be encoded is noted with its place."""
        side, record = item
        if row.problem:
            self._note_bad(record, row.problem)
            return
        side = side or ("validation" if row.held_out else "train")
        counts = self._sides[side]
        counts.rows += 1
        counts.truncated += any(kept.tokens > self._limit for kept in row.documents)
        for kept in row.documents:
            counts.lengths.add(kept.tokens, kept.trained_tokens)
        if not self.classes and not all(kept.trained_tokens for kept in row.documents):
            counts.untrained += 1
            return
        self._rows[side].write(row.line + "\n")
        for kept in row.documents:
            self._tokens[side].append_bytes(kept.ids, kept.trained)

    def close(self) -> None:
        """Finish the files; raises ``DatasetError`` if what is there cannot be trained on."""
        for stream in self._rows.values():
            stream.close()
        for tokens in self._tokens.values():
            tokens.__exit__(None, None, None)
        train, validation = self._sides["train"], self._sides["validation"]
        self._report.untrained_rows = train.untrained + validation.untrained
        self._report.train, self._report.validation = train.report(), validation.report()
        self._report.train_histogram = train.lengths.histogram()
        self._report.validation_histogram = validation.lengths.histogram()
        if self._training.packing:
            self._report.packing = packing_report(pack_lengths(train.lengths.counts, self._limit))
        self._require_good()

    def result(self) -> CheckResult:
        """The counts, in the contract's shape."""
        train, validation = self._sides["train"], self._sides["validation"]
        both = merged((train.lengths, validation.lengths), self._limit)
        packing = self._report.packing
        return CheckResult(
            format=self._seen.format,
            rows=self._seen.rows,
            train_rows=train.kept,
            validation_rows=validation.kept,
            train_tokens=train.lengths.tokens,
            trained_tokens=train.lengths.trained_tokens,
            validation_tokens=validation.lengths.tokens,
            max_tokens=both.longest,
            p50_tokens=both.percentile(50),
            p95_tokens=both.percentile(95),
            truncated_rows=train.truncated + validation.truncated,
            duplicate_rows=self._seen.duplicates,
            leaked_rows=self._seen.leaked,
            packing_efficiency=packing.efficiency if packing else None,
            classes=len(self.classes),
            template=self._report.template,
            example=_cut_text(self._report.example, STATUS_EXAMPLE_CHARACTERS),
        )

    def _note_bad(self, record: Record, problem: str) -> None:
        self._report.bad_rows += 1
        if len(self._report.bad) < SHOWN:
            self._report.bad.append(f"{record.place}: {problem}")

    def _require_good(self) -> None:
        if self._report.bad_rows:
            shown = "; ".join(self._report.bad)
            raise DatasetError(f"{self._report.bad_rows} rows cannot be used with this model: {shown}")
        for side, each in self._sides.items():
            if not each.kept:
                raise DatasetError(_nothing_left(side, each, self._limit, self._seen.format))


def _none_held_out(names: Sequence[str]) -> str:
    return (
        f"no row is held out: the files for validation ({', '.join(names[:4])}) are empty. Add rows to them, name "
        "others in dataset.validation.files, or leave them out: dataset.validation.fraction of the rows is then held "
        "out"
    )


def _nothing_left(side: str, each: Side, limit: int, format_: Format) -> str:
    if each.untrained:
        return (
            f"all {each.untrained} rows of the {side} part are longer than maxSequenceLength {limit} before their "
            "answer begins: raise training.maxSequenceLength or shorten the prompts"
        )
    if side == "train":
        return f"no row is left to train on: all of them are held out. Add rows. {expectation(format_)}"
    return "no row is left to evaluate on: add rows, or a validation.jsonl beside train.jsonl"


def _cut_text(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
