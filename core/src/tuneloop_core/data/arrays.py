"""A JSON array of objects as a stream of records: one item and one chunk of the file in memory, never the array.

The standard library's decoder reads item by item from a window that grows only while an item is not whole. What is
wrong after a broken item cannot be known, so the first broken one ends the file.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from tuneloop_core.data.records import MAX_LINE_BYTES, Record

CHUNK = 1024 * 1024
_BLANK = re.compile(r"[ \t\r\n]*")
_TAIL = 16  # an error this near to the window's end may only mean that the item is cut there
_LAST = "; what follows was not read"


class _BrokenError(ValueError):
    """The array cannot be read further; the message says where and why."""


def read_array(stream: BinaryIO, file: str) -> Iterator[Record]:
    """The items of the array, numbered from 1."""
    window = _Window(stream)
    number = 0
    try:
        window.expect("[", "a JSON array")
        while window.peek() != "]":
            if number:
                window.expect(",", "a comma or the end of the array")
            value = window.item()
            number += 1
            problem = "" if isinstance(value, dict) else "is JSON but not an object"
            yield Record(file, number, None if problem else value, problem, "item")
        window.expect("]", "the end of the array")
        window.expect("", "the end of the file")
    except _BrokenError as error:
        yield Record(file, number + 1, None, f"{error}{_LAST}", "item")


class _Window:
    """A stretch of the file's text, and where in it the reader is."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._scan = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0
        self._line, self._column = 1, 1  # of the window's first character
        self._ended = False

    def peek(self) -> str:
        """The next character that is not blank; empty at the file's end."""
        while True:
            match = _BLANK.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text) or not self._grow():
                return self._text[self._at : self._at + 1]

    def expect(self, character: str, words: str) -> None:
        """Step over one character, or none at the file's end; raises ``_BrokenError``."""
        if (found := self.peek()) != character:
            raise _BrokenError(f"{words} expected at {self._place(self._at)}, found {found or 'the end of the file'}")
        self._at += 1

    def item(self) -> Any:
        """The next value, whole; raises ``_BrokenError``."""
        self.peek()
        while True:
            try:
                value, self._at = self._scan(self._text, self._at)
            except json.JSONDecodeError as error:
                self._read_on(error)
            except RecursionError:
                raise _BrokenError(f"not JSON: nested too deeply at {self._place(self._at)}") from None
            else:
                return value

    def _read_on(self, error: json.JSONDecodeError) -> None:
        """More of the file where the item may only be cut; raises ``_BrokenError`` where it is wrong."""
        words = f"not JSON: {error.msg} at {self._place(error.pos)}"
        cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _TAIL
        if len(self._text) - self._at > MAX_LINE_BYTES:
            raise _BrokenError(f"longer than {MAX_LINE_BYTES // 2**20} MiB") from None
        if not cut or not self._grow():
            raise _BrokenError(words) from None

    def _grow(self) -> bool:
        """Read as much again as is still unread, at least a chunk; False at the file's end."""
        if self._ended:
            return False
        self._drop()
        wanted = max(CHUNK, len(self._text))
        data = self._stream.read(wanted)
        self._ended = not data
        try:
            self._text += self._decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise _BrokenError(f"not UTF-8: byte 0x{byte:02x} after {self._place(len(self._text))}") from None
        return not self._ended

    def _drop(self) -> None:
        """Forget what was read, keeping count of its lines."""
        self._line, self._column = self._position(self._at)
        self._text, self._at = self._text[self._at :], 0

    def _position(self, at: int) -> tuple[int, int]:
        newlines = self._text.count("\n", 0, at)
        if not newlines:
            return self._line, self._column + at
        return self._line + newlines, at - self._text.rfind("\n", 0, at)

    def _place(self, at: int) -> str:
        line, column = self._position(at)
        return f"line {line} column {column}"
