"""One run of benchmarks/dataset.py in the trainer's environment: check on a generated file, its memory watched.

Prints its numbers as the last line, JSON. What was read is counted by the kernel (``rchar`` of the process), so that
every kind of file is watched alike; the memory is the process's resident set.
"""

import csv
import importlib.util
import json
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

from tuneloop_core.data.rows import Format
from tuneloop_core.data.survey import survey
from tuneloop_core.stages import CheckInput
from tuneloop_trainer import check
from tuneloop_trainer.paths import Paths

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
    """MiB of memory that the process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / MIB


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


def tenths(samples: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The sample at each tenth of what was read."""
    last = samples[-1][0]
    chosen = (next(each for each in samples if each[0] >= last * tenth / 10) for tenth in range(11))
    return [(round(read), round(held, 1)) for read, held in chosen]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="bench-dataset-") as temporary:
        sys.stdout.write(json.dumps(run(Path(temporary), sys.argv[1], sys.argv[2], int(sys.argv[3]))) + "\n")
