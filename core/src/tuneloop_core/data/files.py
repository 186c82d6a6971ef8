"""The files of a dataset folder: which are read, for which side of the split, and in which format.

Splits go by name, as the hub does it. Opens files one at a time and never holds more than one record of them; never
decides whether a bad record is fatal (see ``survey``).
"""

import gzip
import hashlib
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar, cast

from tuneloop_core.data.arrays import read_array
from tuneloop_core.data.lines import read_lines
from tuneloop_core.data.records import MAX_LINE_BYTES, Record
from tuneloop_core.data.tables import read_csv, read_parquet

P = TypeVar("P", str, Path)

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# Kinds of file, the one that is taken first where a split has several. Only text may be packed.
KINDS = ((".jsonl", ".ndjson"), (".json",), (".parquet",), (".csv", ".tsv"))
READ = ".jsonl, .json, .csv, .tsv or .parquet (.gz but for the last)"
OTHER_FORMATS = (".arrow", ".txt", ".xlsx", ".zst", ".zip", ".gz", ".bz2", ".xz", ".tar")
INFO_FILES = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"})


class DatasetError(ValueError):
    """The dataset cannot be trained on; the message is for the user: what was found, what would be right."""


@dataclass(frozen=True)
class DatasetFiles:
    """The files of one dataset folder, in reading order."""

    train: tuple[Path, ...]
    validation: tuple[Path, ...] = ()
    unused: tuple[Path, ...] = ()  # readable, but of no side: a test split, a copy of a file that is held out


# ---- which files ---------------------------------------------------------------------------------------------------


TRAIN, VALIDATION = "train", "validation"
"""Folders of a fetched dataset whose held-out files were named (``dataset.validation``): the folder says the side."""


def find_sides(root: Path) -> DatasetFiles:
    """The files of a dataset whose held-out files were named; raises ``DatasetError``.

    A file for training that is, byte by byte, one of those held out is used by no side.
    """
    train, held_out = (_readable(root / side) for side in (TRAIN, VALIDATION))
    copies = _copies(train, held_out)
    if not train or not held_out:
        raise DatasetError(f"the dataset has no file to {'train on' if held_out else 'hold out'} that is read: {READ}")
    if len(copies) == len(train):
        raise DatasetError(_all_held_out([_relative(path, root / TRAIN) for path in train]))
    return DatasetFiles(tuple(path for path in train if path not in copies), tuple(held_out), tuple(copies))


def find_files(root: Path, named: bool = False) -> DatasetFiles:
    """The training and validation files of a folder, by their names; raises ``DatasetError``.

    ``named``: the user chose the files one by one (``dataset.files``), so those of no split are for training.
    """
    readable = _readable(root)
    if not readable:
        raise DatasetError(f"the dataset has no file that is read: {READ}{_others(root)}")
    if len(readable) == 1:
        return DatasetFiles((readable[0],))
    splits = {name: best_kind([p for p in readable if split_of(_relative(p, root)) == name]) for name in SPLITS}
    train = splits["train"]
    held_out = splits["validation"] or splits["test"]
    rest = best_kind([path for path in readable if not split_of(_relative(path, root))])
    if words := untrained([_relative(path, root) for path in readable], named=named):
        raise DatasetError(words)
    train = train or rest
    unused = [path for path in readable if path not in train and path not in held_out]
    return DatasetFiles(tuple(train), tuple(held_out), tuple(unused))


def untrained(paths: Sequence[str], *, named: bool = False) -> str:
    """Why none of these readable files would be trained on, by their names; empty where some would."""
    rest = best_kind([path for path in paths if not split_of(path)])
    one = len(paths) == 1 or len(rest) == 1
    trained = one or (named and rest) or any(split_of(path) == "train" for path in paths)
    return "" if trained else _no_train(paths)


def wanted_files(paths: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Of a repository's paths those to fetch: by patterns, else the readable ones of the best kind of each split."""
    readable = [path for path in sorted(paths) if is_readable(PurePosixPath(path).name)]
    if patterns:
        return [path for path in readable if any(matches(path, pattern) for pattern in patterns)]
    splits = {name: best_kind([path for path in readable if split_of(path) == name]) for name in ("", *SPLITS)}
    if splits["train"]:
        splits.pop("")  # such as a list of statistics beside the data
    return sorted(path for files in splits.values() for path in files)


def held_out_files(paths: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Of the paths that ``dataset.validation`` is about those to hold out: by patterns, else by the names of splits.

    Without either it is all of them, of the best kind there is.
    """
    found = wanted_files(paths, patterns)
    if patterns:
        return found
    sides = ([path for path in found if split_of(path) == name] for name in ("validation", "test", "", "train"))
    return best_kind(next((side for side in sides if side), []))


def training_files(paths: Iterable[str], patterns: Sequence[str], held_out: Collection[str]) -> list[str]:
    """Of the paths those to train on where ``held_out`` were named: by patterns, else none that is of another split."""
    found = wanted_files((path for path in paths if path not in held_out), patterns)
    return found if patterns else [path for path in found if split_of(path) in ("", "train")]


def matches(path: str, pattern: str) -> bool:
    """Whether a glob fits a whole path: ``*`` and ``?`` within one folder, ``**`` over any."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    meanings = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.fullmatch("".join(meanings.get(part, re.escape(part)) for part in parts), path) is not None


def is_readable(name: str) -> bool:
    """Whether a file of this name is one that is read; what describes a dataset is none."""
    return bool(kind_of(name)) and not name.startswith(".") and name.lower() not in INFO_FILES


def kind_of(name: str) -> str:
    """The suffix that says how to read a file, ``.gz`` taken off; empty for what is not read."""
    lower = name.lower()
    suffix = PurePosixPath(lower.removesuffix(".gz")).suffix
    packed = lower.endswith(".gz")
    known = any(suffix in kinds for kinds in KINDS)
    return suffix if known and not (packed and suffix == ".parquet") else ""


def split_of(path: str) -> str:
    """train, validation or test by the file's name, else by its nearest folder's; empty for neither."""
    for part in reversed(PurePosixPath(path).parts):
        words = re.split(r"[^a-z]+", part.lower())
        for word in words:
            if found := next((name for name, keywords in SPLITS.items() if word in keywords), ""):
                return found
    return ""


def best_kind(files: Sequence[P]) -> list[P]:
    """The files of the first kind there is: the same rows often lie there as JSON Lines and as Parquet."""
    for kinds in KINDS:
        if found := [path for path in files if kind_of(str(path)) in kinds]:
            return found
    return []


def _readable(root: Path) -> list[Path]:
    return [path for path in sorted(root.rglob("*")) if path.is_file() and is_readable(path.name)]


def _copies(files: Sequence[Path], of: Sequence[Path]) -> list[Path]:
    """Those of the files whose bytes are another's; only files of one size are read."""
    sizes = {path.stat().st_size for path in of}
    alike = [path for path in files if path.stat().st_size in sizes]
    if not alike:
        return []
    digests = {_digest(path) for path in of}
    return [path for path in alike if _digest(path) in digests]


def _digest(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _all_held_out(names: Sequence[str]) -> str:
    return (
        f"each file to train on ({', '.join(names[:4])}) is one of those held out too, so that none is left: name "
        "others in dataset.files, or fewer in dataset.validation.files"
    )


def file_name(path: Path, root: Path | None) -> str:
    """How a file is named to people: with its folders below the dataset's, where that is known."""
    return _relative(path, root) if root else path.name


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _no_train(paths: Sequence[str]) -> str:
    return (
        f"the dataset has {len(paths)} files ({', '.join(paths[:6])}) and none is named train.jsonl; name the file in "
        "dataset.uri, the files in dataset.files, or name it train.jsonl (and validation.jsonl for held-out rows)"
    )


def _others(root: Path) -> str:
    others = sorted(path.name for path in root.rglob("*") if path.suffix.lower() in OTHER_FORMATS)
    return f" (found {', '.join(others[:4])}: convert it to JSON Lines)" if others else ""


# ---- what is in them -----------------------------------------------------------------------------------------------


def read_records(path: Path, columns: frozenset[str] = frozenset(), root: Path | None = None) -> Iterator[Record]:
    """Every record of a file with its place. ``columns`` spares Parquet the reading of others.

    Below ``root``, the dataset's folder, a file is named with its folders: two sides may have files of one name.
    """
    suffix, name = kind_of(path.name), file_name(path, root)
    if suffix == ".parquet":
        yield from read_parquet(path, name, columns)
        return
    last = 0
    try:
        with _opened(path) as stream:
            for record in _read_text(stream, name, suffix):
                last = record.line
                yield record
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield Record(name, last + 1, None, f"cannot be unpacked: {error}; what follows was not read")


def _opened(path: Path) -> BinaryIO:
    if path.name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")


def _read_text(stream: BinaryIO, file: str, suffix: str) -> Iterator[Record]:
    if suffix in (".csv", ".tsv"):
        return read_csv(stream, file, "\t" if suffix == ".tsv" else ",")
    if suffix == ".json" and _starts_array(stream):
        return read_array(stream, file)
    return read_lines(stream, file)


def _starts_array(stream: BinaryIO) -> bool:
    head = stream.read(4096)
    stream.seek(0)
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


__all__ = [
    "MAX_LINE_BYTES",
    "READ",
    "TRAIN",
    "VALIDATION",
    "DatasetError",
    "DatasetFiles",
    "Record",
    "file_name",
    "find_files",
    "find_sides",
    "held_out_files",
    "is_readable",
    "kind_of",
    "matches",
    "read_records",
    "training_files",
    "untrained",
    "wanted_files",
]
