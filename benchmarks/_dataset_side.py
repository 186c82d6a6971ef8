"""One run of benchmarks/dataset.py in the trainer's environment: check on a generated file, its memory watched.

Prints its numbers as the last line, JSON. What was read is counted by the kernel (``rchar`` of the process), so that
every kind of file is watched alike; the memory is the process's resident set.
"""

import csv
import importlib.util
import itertools
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tuneloop_core.data.columns import Columns
from tuneloop_core.data.rows import ChatRow, Format
from tuneloop_core.data.spans import find_spans
from tuneloop_core.data.split import Split
from tuneloop_core.data.survey import read_rows, records_of, survey
from tuneloop_core.stages import CheckInput
from tuneloop_trainer import check
from tuneloop_trainer.cgroup import cpu_threads
from tuneloop_trainer.encode import Encoder, load_encoder
from tuneloop_trainer.paths import Paths
from tuneloop_trainer.tokenizing import Task, tokenized

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20
PARQUET_GROUP = 20_000  # rows; a group is what its writer and its reader hold
NAMES = ("prompt", "completion")


def rows(megabytes: int) -> Iterator[dict[str, str]]:
    """Rows of about 800 characters, all different, until their text has so many MiB."""
    chance = random.Random(7)
    words = " ".join(chance.choices((ROOT / "docs/contracts.md").read_text().split(), k=200_000))
    written = number = 0
    while written < megabytes * MIB:
        start = chance.randrange(len(words) - 2000)
        prompt, completion = f"{number}: {words[start : start + 300]}", words[start + 300 : start + 800]
        yield {"prompt": prompt, "completion": completion}
        written, number = written + len(prompt) + len(completion) + 40, number + 1


def write(folder: Path, kind: str, megabytes: int) -> Path:
    """A file of that kind; JSON Lines unless said otherwise."""
    path = folder / f"train.{kind}"
    if kind == "parquet":
        _write_parquet(path, rows(megabytes))
        return path
    with path.open("w", encoding="utf-8", newline="") as stream:
        if kind == "csv":
            table = csv.DictWriter(stream, NAMES)
            table.writeheader()
            table.writerows(rows(megabytes))
            return path
        for number, row in enumerate(rows(megabytes)):
            stream.write(("[" if not number else ",") * (kind == "json") + json.dumps(row) + "\n")
        stream.write("]" * (kind == "json"))
    return path


def _write_parquet(path: Path, values: Iterator[dict[str, str]]) -> None:
    schema = pa.schema([(name, pa.string()) for name in NAMES])
    with pq.ParquetWriter(path, schema) as writer:
        batch: list[dict[str, str]] = []
        for row in values:
            batch.append(row)
            if len(batch) == PARQUET_GROUP:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema))


def resident() -> float:
    """MiB of memory that the process and its workers hold; what they share counts for each of them."""
    return sum(_pages(process) for process in _family(os.getpid())) * 4096 / MIB


def _pages(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:  # it has ended
        return 0


def _family(process: int) -> Iterator[int]:
    yield process
    try:
        children = [path.read_text().split() for path in Path(f"/proc/{process}/task").glob("*/children")]
    except OSError:
        return
    for child in itertools.chain.from_iterable(children):
        yield from _family(int(child))


def bytes_read() -> int:
    """Bytes that the process read so far, from wherever."""
    return int(Path("/proc/self/io").read_text().split()[1])


class Watch:
    """Samples of (MiB read, MiB resident) while a stage runs."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []
        self._done = threading.Event()
        self._start = bytes_read()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._done.wait(0.2):
            self._sample()

    def _sample(self) -> None:
        self.samples.append(((bytes_read() - self._start) / MIB, resident()))

    def close(self) -> None:
        """Stop, with a last sample."""
        self._done.set()
        self._thread.join()
        self._sample()


def tiny_model(folder: Path) -> None:
    """The demo's tiny model: a real tokenizer, and nothing of weight."""
    spec = importlib.util.spec_from_file_location("tiny_model", ROOT / "demo/src/tuneloop_demo/tiny_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["tiny_model"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_tiny_model(folder)


def run(root: Path, what: str, kind: str, megabytes: int) -> dict[str, Any]:
    """Check a new file, after a small one that loads all that is loaded once."""
    paths = Paths(root)
    for folder in (paths.dataset, paths.work, paths.model):
        folder.mkdir(parents=True)
    tiny_model(paths.model)
    _checked(paths, what, write(paths.dataset, kind, 1))
    path = write(paths.dataset, kind, megabytes)
    size, before = path.stat().st_size / MIB, resident()
    watch, start = Watch(), time.monotonic()
    found = _checked(paths, what, path)
    seconds = time.monotonic() - start
    watch.close()
    return {
        "what": what,
        "kind": kind,
        "mib": round(size, 1),
        "rows": found,
        "seconds": round(seconds, 1),
        "before_mib": round(before, 1),
        "peak_mib": round(max(held for _, held in watch.samples), 1),
        "samples": tenths(watch.samples),
    }


def _checked(paths: Paths, what: str, path: Path) -> int:
    """The first pass alone, or the whole stage; the rows that were found good."""
    if what == "rows":
        seen = survey([path], Format.AUTO, has_template=True)
        seen.require_good()
        return seen.rows
    given = CheckInput(owner="benchmark", dataset={"uri": "pvc://a/b"}, method={}, training={})
    return check.run(given, paths).rows


def conversations(folder: Path, megabytes: int) -> Path:
    """The same rows as conversations with a system prompt."""
    path = folder / "train.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        for row in rows(megabytes):
            said = (
                ("system", "You answer briefly."),
                ("user", row["prompt"]),
                ("assistant", row["completion"].strip()),
            )
            messages = [{"role": role, "content": content} for role, content in said]
            stream.write(json.dumps({"messages": messages}) + "\n")
    return path


def rates(root: Path, megabytes: int, model: str) -> list[dict[str, Any]]:
    """Rows and tokens a second, from records to tokens: row by row as it was, and batched, here and by workers."""
    folder = Path(model) if model else root / "model"
    if not model:
        folder.mkdir(parents=True)
        tiny_model(folder)
    encoder, path, cores = load_encoder(folder), conversations(root, megabytes), cpu_threads()
    ways: list[tuple[str, Any]] = [
        ("row by row", lambda: _row_by_row(encoder, path)),
        ("batches", lambda: _batched(encoder, folder, path, 0)),
        (f"batches, {cores} workers", lambda: _batched(encoder, folder, path, cores)),
    ]
    return [_rate(name, way) for name, way in ways]


def _rate(name: str, way: Any) -> dict[str, Any]:
    start = time.monotonic()
    count, tokens = way()
    seconds = time.monotonic() - start
    return {"way": name, "rows": count, "tokens": tokens, "seconds": round(seconds, 2)}


def _row_by_row(encoder: Encoder, path: Path) -> tuple[int, int]:
    """As the stage did it before: each row rendered until its spans are proven, then tokenized alone."""
    closers = sorted(encoder.tokenizer.all_special_tokens, key=len, reverse=True)

    def render(messages: Any, add_generation_prompt: bool) -> str:
        return str(
            encoder.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )

    count = tokens = 0
    for _, row in read_rows([path], Format.CHAT, has_template=True):
        assert isinstance(row, ChatRow)
        text, spans = find_spans(render, row.as_messages(), closers)
        out = encoder.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        [any(first <= start < last for first, last in spans) for start, _ in out["offset_mapping"]]
        count, tokens = count + 1, tokens + len(out["input_ids"])
    return count, tokens


def _batched(encoder: Encoder, model: Path, path: Path, workers: int) -> tuple[int, int]:
    task = Task(Format.CHAT, True, Columns(), {}, Split(0, 0), 2048)
    items = (("", record) for record in records_of([path], Columns()))
    done = [len(row.documents[0].trained) for _, row in tokenized(items, encoder, model, task, workers)]
    return len(done), sum(done)


def tenths(samples: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The sample at each tenth of what was read."""
    last = samples[-1][0]
    chosen = (next(each for each in samples if each[0] >= last * tenth / 10) for tenth in range(11))
    return [(round(read), round(held, 1)) for read, held in chosen]


if __name__ == "__main__":
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # as the check stage: a tokenizer needs none
    what, kind, size, *model = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="bench-dataset-") as temporary:
        place = Path(temporary)
        found = rates(place, int(size), *model) if what == "rates" else run(place, what, kind, int(size))
        sys.stdout.write(json.dumps(found) + "\n")
