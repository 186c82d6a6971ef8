"""Tokenized documents on disk: written once by check, mapped by train, so that no accelerator waits for a tokenizer.

Three flat files: token ids (int32), which of them carry loss (uint8), and where each document ends (int64). Read
through memory maps: a dataset larger than memory costs page cache only.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

IDS, TRAINED, ENDS = "tokens.i32", "trained.u8", "ends.i64"


@dataclass(frozen=True)
class Document:
    """One example: ids (int32) and, for each, whether the loss counts it (uint8)."""

    ids: npt.NDArray[np.int32]
    trained: npt.NDArray[np.uint8]


class TokenWriter:
    """Appends documents; the files are complete when it closes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files = [(folder / name).open("wb") for name in (IDS, TRAINED, ENDS)]
        self._end = 0

    def append(self, ids: list[int], trained: list[int]) -> None:
        """Add one document; both lists have its length."""
        self.append_bytes(np.array(ids, dtype=np.int32).tobytes(), np.array(trained, dtype=np.uint8).tobytes())

    def append_bytes(self, ids: bytes, trained: bytes) -> None:
        """Add one document: ids as int32, marks as uint8."""
        self._end += len(trained)
        tokens, marks, ends = self._files
        tokens.write(ids)
        marks.write(trained)
        ends.write(self._end.to_bytes(8, "little"))

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._files:
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()


class TokenStore:
    """Documents by number."""

    def __init__(self, folder: Path) -> None:
        self._ends: npt.NDArray[np.int64] = _mapped(folder / ENDS, np.int64)
        self._ids: npt.NDArray[np.int32] = _mapped(folder / IDS, np.int32)
        self._trained: npt.NDArray[np.uint8] = _mapped(folder / TRAINED, np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each document."""
        return np.diff(self._ends, prepend=0)

    def document(self, number: int) -> Document:
        """The document ``number``, counted from 0."""
        start, end = int(self._ends[number - 1]) if number else 0, int(self._ends[number])
        return Document(self._ids[start:end], self._trained[start:end])


class Examples:
    """Documents in groups of equal size, one group for each row: two where answers are compared, else one."""

    def __init__(self, store: TokenStore, each: int = 1) -> None:
        self._store, self._each = store, each
        self.lengths: npt.NDArray[np.int64] = store.lengths.reshape(-1, each).sum(axis=1)
        """Tokens of each example."""

    def __len__(self) -> int:
        return len(self.lengths)

    def documents(self, number: int) -> list[Document]:
        """The documents of the example ``number``, counted from 0."""
        return [self._store.document(number * self._each + place) for place in range(self._each)]

    def flat(self, numbers: Iterable[int]) -> list[Document]:
        """The documents of several examples, one after the other."""
        return [document for number in numbers for document in self.documents(number)]


def _mapped(path: Path, dtype: type[np.generic]) -> npt.NDArray[Any]:
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")
