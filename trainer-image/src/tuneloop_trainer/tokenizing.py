"""Rows to what is written of them, in batches and in the order they came: here, or by worker processes.

A small dataset is tokenized in this process, whose tokenizer shares a batch among its threads. A large one goes to as
many workers as the pod has CPUs and memory for: rendering a template and parsing a row are Python's, which one process
does on one core. The result is the same, to the last byte. At most ``AHEAD`` batches a worker are under way, so that
memory does not follow the dataset's size. Never writes a file.
"""

import json
import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tuneloop_core.data.columns import Columns
from tuneloop_core.data.records import Record
from tuneloop_core.data.rows import ClassRow, Format, Row
from tuneloop_core.data.split import Split
from tuneloop_core.data.survey import row_of
from tuneloop_core.stages import Reason

from tuneloop_trainer.cgroup import cpu_threads, memory_limit
from tuneloop_trainer.encode import Draft, Encoded, EncodeError, Encoder, load_encoder, require_trained
from tuneloop_trainer.errors import StageError

BATCH = 128  # rows
BATCH_CHARACTERS = 2_000_000  # of their texts, about; a longer row is a batch of its own
AHEAD = 2  # batches under way for each worker
MOST_WORKERS = 16
FEW_ROWS = 5_000  # a worker needs seconds to start
WORKER_BYTES = 384 * 2**20  # what a worker holds: interpreter, tokenizer, two batches
OWN_BYTES = 768 * 2**20  # what the stage itself holds
THREADS_ENV = "TOKENIZERS_PARALLELISM"


Item = tuple[str, Record]  # the side that the record's file is of, empty where its hash decides; the record


@dataclass(frozen=True)
class Task:
    """All that a row's tokens hang on, besides the model's folder; small, since every worker gets it."""

    format: Format
    has_template: bool
    columns: Columns
    classes: dict[str, int]
    split: Split
    limit: int  # training.maxSequenceLength


@dataclass(frozen=True)
class Kept:
    """One document, cut to the limit; ids as int32 and marks as uint8, ready to be written."""

    ids: bytes
    trained: bytes
    tokens: int  # before the cut
    trained_tokens: int  # after it


@dataclass(frozen=True)
class Tokenized:
    """One row: its side of the split where the file does not say it, its normalised line, its documents."""

    held_out: bool
    line: str
    documents: list[Kept]
    problem: str = ""


Done = tuple[list[Item], list[Tokenized]]


class Tokenizing:
    """One process's way from records to tokens."""

    def __init__(self, encoder: Encoder, task: Task) -> None:
        self._encoder, self._task = encoder, task

    def batch(self, records: list[Record]) -> list[Tokenized]:
        """The rows of a batch, tokenized together."""
        rows = [self.row(record) for record in records]
        drafts = [self._drafts(row) for row in rows]
        encoded = iter(self._encoder.tokenize([draft for each in drafts if isinstance(each, list) for draft in each]))
        return [
            self._refused(row, each) if isinstance(each, str) else self._done(row, list(islice(encoded, len(each))))
            for row, each in zip(rows, drafts, strict=True)
        ]

    def row(self, record: Record) -> Row:
        """The row of a record that the survey found good; a class by its number."""
        row = row_of(record, self._task.format, self._task.has_template, self._task.columns)
        return ClassRow(row.text, self._task.classes[str(row.label)]) if isinstance(row, ClassRow) else row

    def _drafts(self, row: Row) -> list[Draft] | str:
        try:
            return self._encoder.drafts(row)
        except EncodeError as error:
            return str(error)

    def _refused(self, row: Row, problem: str) -> Tokenized:
        return Tokenized(self._task.split.holds_out(row), "", [], problem)

    def _done(self, row: Row, documents: list[Encoded]) -> Tokenized:
        try:
            require_trained(row, documents)
        except EncodeError as error:
            return self._refused(row, str(error))
        line = json.dumps(row.as_json(), ensure_ascii=False)
        kept = [_kept(encoded, self._task.limit) for encoded in documents]
        return Tokenized(self._task.split.holds_out(row), line, kept)


def worker_count(rows: int, cores: int, memory: int) -> int:
    """Worker processes for so many rows on so many CPUs, with ``memory`` bytes (0 is no limit); 0 is none."""
    if rows < FEW_ROWS or cores < 2:
        return 0
    fitting = (memory - OWN_BYTES) // WORKER_BYTES if memory else MOST_WORKERS
    workers = min(cores, fitting, MOST_WORKERS)
    return workers if workers > 1 else 0


def allowed_workers(rows: int) -> int:
    """As ``worker_count``, in this pod."""
    return worker_count(rows, cpu_threads(), memory_limit())


def tokenized(
    items: Iterable[Item], encoder: Encoder, model: Path, task: Task, workers: int
) -> Iterator[tuple[Item, Tokenized]]:
    """Every record with what became of it, in order; ``workers`` 0 does it in this process."""
    batches = _batches(items)
    done = _by_workers(batches, model, task, workers) if workers else _here(batches, encoder, task)
    for batch, results in done:
        yield from zip(batch, results, strict=True)


def _here(batches: Iterator[list[Item]], encoder: Encoder, task: Task) -> Iterator[Done]:
    own = Tokenizing(encoder, task)
    with _threads():
        for batch in batches:
            yield batch, own.batch(_records(batch))


def _by_workers(batches: Iterator[list[Item]], model: Path, task: Task, workers: int) -> Iterator[Done]:
    waiting: deque[tuple[list[Item], Future[list[Tokenized]]]] = deque()
    with _pool(model, task, workers) as pool:
        try:
            for batch in batches:
                waiting.append((batch, pool.submit(_work, _records(batch))))
                if len(waiting) > AHEAD * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except BrokenProcessPool as error:
            raise StageError(Reason.OUT_OF_MEMORY, _KILLED.format(workers=workers)) from error


_KILLED = (
    "one of {workers} tokenizing processes was killed, most likely for want of memory: raise stages.memoryLimit of the "
    "installation, or shorten the longest rows."
)


@contextmanager
def _pool(model: Path, task: Task, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Workers forked from a fresh process that has the libraries loaded: no thread of ours is copied."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tuneloop_trainer.preload"])
    pool = ProcessPoolExecutor(workers, context, _start_worker, (model, task))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


_own: list[Tokenizing] = []  # a worker's; set once, when it starts


def _start_worker(model: Path, task: Task) -> None:
    os.environ[THREADS_ENV] = "false"  # the other cores are other workers'
    _own.append(Tokenizing(load_encoder(model), task))


def _work(batch: list[Record]) -> list[Tokenized]:
    return _own[0].batch(batch)


@contextmanager
def _threads() -> Iterator[None]:
    """The tokenizer may use all of the pod's CPUs."""
    before = os.environ.get(THREADS_ENV)
    os.environ.setdefault("RAYON_NUM_THREADS", str(cpu_threads()))
    os.environ[THREADS_ENV] = "true"
    try:
        yield
    finally:
        os.environ.pop(THREADS_ENV) if before is None else os.environ.update({THREADS_ENV: before})


def _records(batch: list[Item]) -> list[Record]:
    return [record for _, record in batch]


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    size = 0
    for item in items:
        weight = _characters(item[1].value)
        if batch and (len(batch) == BATCH or size + weight > BATCH_CHARACTERS):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += weight
    if batch:
        yield batch


def _characters(value: Any) -> int:
    """The texts' lengths in a JSON value, together."""
    if isinstance(value, str):
        return len(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_characters, inner))


def _kept(encoded: Encoded, limit: int) -> Kept:
    cut = encoded.cut(limit)
    ids, trained = np.array(cut.ids, dtype=np.int32), np.array(cut.trained, dtype=np.uint8)
    return Kept(ids.tobytes(), trained.tobytes(), len(encoded.ids), int(trained.sum()))
