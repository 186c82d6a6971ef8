"""JSON Lines as a stream of records with line numbers. Holds one line at a time."""

from collections.abc import Iterator
from typing import BinaryIO

from tuneloop_core.data.fields import BadRowError
from tuneloop_core.data.records import MAX_LINE_BYTES, Record, decode_object


def read_lines(stream: BinaryIO, file: str) -> Iterator[Record]:
    """Every line that is not blank, with its number."""
    line = 0
    while data := stream.readline(MAX_LINE_BYTES + 1):
        line += 1
        if len(data) > MAX_LINE_BYTES:
            yield Record(file, line, None, f"longer than {MAX_LINE_BYTES // 2**20} MiB")
            _skip_line(stream)
        elif data.strip():
            yield _decode(file, line, data)


def _skip_line(stream: BinaryIO) -> None:
    while (data := stream.readline(MAX_LINE_BYTES)) and not data.endswith(b"\n"):
        pass


def _decode(file: str, line: int, data: bytes) -> Record:
    try:
        return Record(file, line, decode_object(data, line))
    except BadRowError as error:
        return Record(file, line, None, str(error))
