"""JSON Lines files as a stream of rows with line numbers, in flat memory.

Finds the files of a dataset folder, decodes line by line, and says for each bad line what is wrong. Never holds more
than one line, and never decides whether a bad line is fatal (see ``survey``).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop_core.data.rows import BadRowError

MAX_LINE_BYTES = 32 * 1024 * 1024
TRAIN_NAMES = ("train",)
VALIDATION_NAMES = ("validation", "valid", "val", "dev", "test")
SUFFIXES = (".jsonl", ".ndjson", ".json")
ARRAY = "the file is one JSON array; write one object a line instead (JSON Lines)"
OTHER_FORMATS = (".parquet", ".csv", ".tsv", ".arrow", ".txt", ".xlsx", ".gz", ".zst", ".zip")


class DatasetError(ValueError):
    """The dataset cannot be trained on; the message is for the user: what was found, what would be right."""


@dataclass(frozen=True)
class DatasetFiles:
    """The files of one dataset folder, in reading order."""

    train: tuple[Path, ...]
    validation: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Record:
    """One line of a file: either an object or what is wrong with it."""

    file: str
    line: int  # 1-based
    value: dict[str, Any] | None
    problem: str = ""


def find_files(root: Path) -> DatasetFiles:
    """The training and validation files of a folder, by their names; raises ``DatasetError``."""
    names = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix.lower() in SUFFIXES)
    train = _named(names, TRAIN_NAMES)
    validation = _validation(names)
    if train:
        return DatasetFiles(train, validation)
    rest = tuple(path for path in names if path not in validation)
    if len(rest) == 1:
        return DatasetFiles(rest, validation)
    if not names:
        raise DatasetError(f"the dataset has no .jsonl file{_others(root)}; one JSON object a line is expected")
    found = ", ".join(path.name for path in names[:6])
    raise DatasetError(
        f"the dataset has {len(names)} files ({found}) and none is named train.jsonl; name the file in dataset.uri, "
        "or name it train.jsonl (and validation.jsonl for held-out rows)"
    )


def _validation(names: list[Path]) -> tuple[Path, ...]:
    for name in VALIDATION_NAMES:
        if files := _named(names, (name,)):
            return files
    return ()


def _named(files: list[Path], starts: tuple[str, ...]) -> tuple[Path, ...]:
    def matches(path: Path) -> bool:
        stem = path.stem.lower()
        return any(stem == start or stem.startswith((start + "-", start + "_", start + ".")) for start in starts)

    return tuple(path for path in files if matches(path))


def _others(root: Path) -> str:
    others = sorted(path.name for path in root.rglob("*") if path.suffix.lower() in OTHER_FORMATS)
    return f" (found {', '.join(others[:4])}: convert it to JSON Lines)" if others else ""


def read_records(path: Path) -> Iterator[Record]:
    """Every line that is not blank, with its number."""
    with path.open("rb") as stream:
        line = 0
        while data := stream.readline(MAX_LINE_BYTES + 1):
            line += 1
            if len(data) > MAX_LINE_BYTES:
                yield Record(path.name, line, None, f"longer than {MAX_LINE_BYTES // 2**20} MiB")
                _skip_line(stream)
            elif data.strip():
                yield _decode(path.name, line, data)


def _skip_line(stream: Any) -> None:
    while (data := stream.readline(MAX_LINE_BYTES)) and not data.endswith(b"\n"):
        pass


def _decode(file: str, line: int, data: bytes) -> Record:
    try:
        return Record(file, line, _object(data, line))
    except BadRowError as error:
        return Record(file, line, None, str(error))


def _object(data: bytes, line: int) -> dict[str, Any]:
    if line == 1 and data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BadRowError("the file is UTF-16; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise BadRowError(f"not UTF-8: byte 0x{data[error.start]:02x} at position {error.start + 1}") from None
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadRowError(_json_problem(text, line, error)) from None
    if not isinstance(value, dict):
        raise BadRowError(ARRAY if isinstance(value, list) and line == 1 else "is JSON but not an object")
    return value


def _json_problem(text: str, line: int, error: Exception) -> str:
    if line == 1 and text.lstrip().startswith("["):
        return ARRAY
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    return "not JSON: nested too deeply"
