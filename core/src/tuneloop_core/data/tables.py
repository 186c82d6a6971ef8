"""CSV and Parquet as streams of records. A few hundred rows in memory, never the file; Parquet needs pyarrow.

Nothing is guessed: in CSV every value is a string and the first line names the columns.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tuneloop_core.data.records import MAX_LINE_BYTES, Record

MAX_CELL = 8 * 1024 * 1024  # characters: a quote that is never closed would else swallow the file
PARQUET_ROWS = 64  # rows decoded at a time


def read_csv(stream: BinaryIO, file: str, delimiter: str) -> Iterator[Record]:
    """The rows under the header, each with the number of its first line."""
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(_lines(stream), delimiter=delimiter, strict=True)
    line = 1
    try:
        header = next(reader, None)
        if header is None:
            return
        if problem := _header_problem(header, delimiter):
            yield Record(file, 1, None, problem)
            return
        line = reader.line_num + 1
        for cells in reader:
            if cells:  # a blank line has none
                yield _row(file, line, header, cells)
            line = reader.line_num + 1
    except csv.Error as error:
        yield Record(file, line, None, f"not CSV: {_csv_words(error)}; what follows was not read")


def _lines(stream: BinaryIO) -> Iterator[str]:
    """Lines as text; a byte that is not UTF-8 is passed on, so that the column that holds it can be named."""
    first = True
    while data := stream.readline(MAX_LINE_BYTES + 1):
        if first and data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise csv.Error("the file is UTF-16; save it as UTF-8")
        if len(data) > MAX_LINE_BYTES:
            raise csv.Error(f"a line is longer than {MAX_LINE_BYTES // 2**20} MiB")
        yield data.decode("utf-8-sig" if first else "utf-8", errors="surrogateescape")
        first = False


def _header_problem(header: list[str], delimiter: str) -> str:
    if twice := sorted({name for name in header if header.count(name) > 1}):
        return f"the first line must name the columns, each once; it has {twice[0]!r:.60} twice"
    if any(not name.strip() for name in header):
        return "the first line must name the columns; one of its names is empty"
    if len(header) == 1 and (other := next((mark for mark in ",;\t" if mark != delimiter and mark in header[0]), "")):
        return f"the first line is one column, {header[0]!r:.60}: separate columns by {delimiter!r}, not by {other!r}"
    return ""


def _row(file: str, line: int, header: list[str], cells: list[str]) -> Record:
    if len(cells) != len(header):
        return Record(file, line, None, f"has {len(cells)} columns, the first line names {len(header)}")
    return Record(file, line, dict(zip(header, cells, strict=True)))


def _csv_words(error: csv.Error) -> str:
    words = str(error)
    if "field larger" in words:
        return f"a value is longer than {MAX_CELL // 2**20} Mi characters; is a quote never closed?"
    return "a quote is opened and never closed" if "unexpected end" in words else words


def read_parquet(path: Path, file: str, wanted: frozenset[str]) -> Iterator[Record]:
    """The rows, numbered from 1; of their columns only ``wanted``, or all where there is none of them."""
    try:
        # Here, because the control plane reads no datasets and does not carry it.
        import pyarrow as pa  # type: ignore[import-untyped]  # noqa: PLC0415
        import pyarrow.parquet as pq  # type: ignore[import-untyped]  # noqa: PLC0415
    except ImportError:
        yield Record(file, 1, None, "Parquet needs pyarrow: install tuneloop-core[data]", "row")
        return
    number = 0
    try:
        with pq.ParquetFile(path, memory_map=False, buffer_size=MAX_LINE_BYTES // 16, pre_buffer=False) as table:
            columns = [name for name in table.schema_arrow.names if name in wanted] or None
            for batch in table.iter_batches(batch_size=PARQUET_ROWS, columns=columns, use_threads=False):
                for value in batch.to_pylist():
                    number += 1
                    yield Record(file, number, {key: _without_nulls(item) for key, item in value.items()}, "", "row")
    except (pa.ArrowException, OSError) as error:
        yield Record(file, number + 1, None, f"not readable as Parquet: {_first_line(error)}", "row")


def _without_nulls(value: Any) -> Any:
    """Without the nulls by which a table fills objects up to one shape."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
