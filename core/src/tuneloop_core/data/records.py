"""One record of a file, or what is wrong with it; and the caps that keep any one of them from filling the memory."""

import json
from dataclasses import dataclass
from typing import Any

from tuneloop_core.data.fields import BadRowError

MAX_LINE_BYTES = 32 * 1024 * 1024
ARRAY = "the file is one JSON array; write one object a line instead (JSON Lines), or name the file .json"


@dataclass(frozen=True)
class Record:
    """One record of a file: either an object or what is wrong with it."""

    file: str
    line: int  # 1-based; a row of Parquet, an item of a JSON array
    value: dict[str, Any] | None
    problem: str = ""
    unit: str = "line"

    @property
    def place(self) -> str:
        """Where it stands, in words: ``train.jsonl line 3``."""
        return f"{self.file} {self.unit} {self.line}"


def decode_text(data: bytes, line: int) -> str:
    """A line's text; raises ``BadRowError``. A byte order mark before the first line is no part of it."""
    if line == 1 and data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BadRowError("the file is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise BadRowError(f"not UTF-8: byte 0x{data[error.start]:02x} at position {error.start + 1}") from None


def decode_object(data: bytes, line: int) -> dict[str, Any]:
    """The object that a line of JSON Lines holds; raises ``BadRowError``."""
    text = decode_text(data, line)
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
    if line == 1 and text.strip() == "{":
        return "the file is one JSON object over many lines; write a JSON array of rows, or one object a line"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    return "not JSON: nested too deeply"
