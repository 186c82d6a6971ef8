"""JSON arrays, CSV, Parquet and packed files: rows with their places, and each way in which a file can be bad."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuneloop_core.data import arrays, tables
from tuneloop_core.data.files import read_records
from tuneloop_core.data.records import Record

ROWS = [{"prompt": "p1", "completion": "c,1"}, {"prompt": 'p"2"', "completion": "c\n2"}]


def read(path: Path, content: bytes | str) -> list[Record]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_records(path))


def problems(records: list[Record]) -> list[str]:
    return [f"{record.place}: {record.problem}" for record in records if record.value is None]


# ---- JSON arrays ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_an_array_is_read_item_by_item(tmp_path: Path, indent: int | None, mark: bytes) -> None:
    records = read(tmp_path / "train.json", mark + json.dumps(ROWS, indent=indent).encode())
    assert [record.value for record in records] == ROWS
    assert [record.place for record in records] == ["train.json item 1", "train.json item 2"]


def test_a_json_file_may_also_hold_lines(tmp_path: Path) -> None:
    records = read(tmp_path / "train.json", "\n".join(map(json.dumps, ROWS)))
    assert [(record.value, record.place) for record in records] == [
        (ROWS[0], "train.json line 1"),
        (ROWS[1], "train.json line 2"),
    ]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_items_may_be_cut_anywhere_by_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(arrays, "CHUNK", chunk)
    rows = [{"text": 'ü\\"\n' + "x" * size, "n": [True, None, -1.5e3, {}]} for size in (0, 1, 50)]
    records = read(tmp_path / "train.json", json.dumps(rows, indent=1, ensure_ascii=False))
    assert [record.value for record in records] == rows


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[]", []),
        ("  [ ]  ", []),
        ('[{"a": 1}]\n[{"b": 2}]', ["item 2: the end of the file expected at line 2 column 1, found ["]),
        ('[{"a": 1}, 2, {"b": 3}]', ["item 2: is JSON but not an object"]),
        ('[{"a": 1}\n {"b": 2}]', ["item 2: a comma or the end of the array expected at line 2 column 2, found {"]),
        ('[{"a": 1},\n{"b": oops}]', ["item 2: not JSON: Expecting value at line 2 column 7"]),
        ('[{"a": 1},\n{"b": "cut', ["item 2: not JSON: Unterminated string starting at at line 2 column 7"]),
        ('[{"a": 1}', ["item 2: a comma or the end of the array expected at line 1 column 10, found the end of the"]),
        ("[" * 100_000, ["item 1: not JSON: nested too deeply at line 1 column 2"]),
        (b'[{"a": 1}, {"b": "\xff"}]', ["item 1: not UTF-8: byte 0xff after line 1 column 1"]),
    ],
)
def test_a_bad_array_says_where(tmp_path: Path, content: str | bytes, expected: list[str]) -> None:
    found = problems(read(tmp_path / "train.json", content))
    assert len(found) == len(expected)
    for problem, start in zip(found, expected, strict=True):
        assert problem.startswith(f"train.json {start}")


def test_an_item_that_is_too_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "CHUNK", 64)
    monkeypatch.setattr(arrays, "MAX_LINE_BYTES", 1024)
    assert "train.json item 1: longer than" in problems(read(tmp_path / "train.json", '[{"a": "' + "x" * 4096))[0]


def test_one_object_over_many_lines_is_told(tmp_path: Path) -> None:
    found = problems(read(tmp_path / "train.json", json.dumps({"data": ROWS}, indent=1)))
    words = "the file is one JSON object over many lines; write a JSON array of rows, or one object a line"
    assert found[0] == f"train.json line 1: {words}"


# ---- CSV -----------------------------------------------------------------------------------------------------------


def test_csv_rows_have_the_line_they_begin_on(tmp_path: Path) -> None:
    text = 'prompt,completion\np1,"c,1"\n\n"p""2""","c\n2"\np3,ü\n'
    records = read(tmp_path / "train.csv", text)
    assert [record.value for record in records] == [*ROWS, {"prompt": "p3", "completion": "ü"}]
    assert [record.line for record in records] == [2, 4, 6]


def test_tabs_part_the_columns_of_tsv(tmp_path: Path) -> None:
    assert read(tmp_path / "train.tsv", "\ufefftext\tlabel\na,b\t1\n")[0].value == {"text": "a,b", "label": "1"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", []),
        ("text,label\n", []),
        ("text,text\na,b\n", ["line 1: the first line must name the columns, each once; it has 'text' twice"]),
        ("text,\na,b\n", ["line 1: the first line must name the columns; one of its names is empty"]),
        (
            "text;label\na;b\n",
            ["line 1: the first line is one column, 'text;label': separate columns by ',', not by ';'"],
        ),
        (
            "text,label\na\nb,1\nc,1,2\n",
            ["line 2: has 1 columns, the first line names 2", "line 4: has 3 columns, the"],
        ),
        ('text,label\na,1\n"b,1\nc,2\n', ["line 3: not CSV: a quote is opened and never closed; what follows was not"]),
        ('text,label\n"a"b,1\n', ["line 2: not CSV: ',' expected after '\"'; what follows was not read"]),
        ("\ufefftext".encode("utf-16"), ["line 1: not CSV: the file is UTF-16; save it as UTF-8"]),
    ],
)
def test_bad_csv_says_where(tmp_path: Path, content: str | bytes, expected: list[str]) -> None:
    found = problems(read(tmp_path / "train.csv", content))
    assert len(found) == len(expected)
    for problem, start in zip(found, expected, strict=True):
        assert problem.startswith(f"train.csv {start}")


def test_a_csv_value_that_is_too_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_CELL", 1024)
    found = problems(read(tmp_path / "train.csv", 'text,label\n"' + "x\n" * 4096))
    assert found[0].startswith("train.csv line 2: not CSV: a value is longer than")
    assert "is a quote never closed?" in found[0]


# ---- Parquet -------------------------------------------------------------------------------------------------------


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return path


def test_parquet_rows_lose_the_nulls_within_and_the_columns_of_others(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    rows = [{"messages": messages, "picture": b"x", "label": None}] * 5
    path = write_parquet(tmp_path / "train.parquet", rows)
    records = list(read_records(path, frozenset({"messages", "label"})))
    assert [record.place for record in records] == [f"train.parquet row {number}" for number in range(1, 6)]
    assert {json.dumps(record.value) for record in records} == {json.dumps({"messages": messages, "label": None})}


def test_all_columns_of_parquet_are_shown_where_none_is_known(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "train.parquet", [{"question": "q", "answer": "a"}])
    assert next(read_records(path, frozenset({"text"}))).value == {"question": "q", "answer": "a"}


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 64 + b"PAR1"])
def test_bad_parquet_is_told(tmp_path: Path, content: bytes) -> None:
    (found,) = problems(read(tmp_path / "train.parquet", content))
    assert found.startswith("train.parquet row 1: not readable as Parquet: ")


def test_parquet_that_ends_early_is_told(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "train.parquet", [{"text": str(number) * 100} for number in range(50)])
    data = path.read_bytes()
    assert "not readable as Parquet" in problems(read(path, data[:200] + b"\xff" * 400 + data[600:]))[0]


# ---- packed files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("train.jsonl.gz", '{"text": "a"}\n', {"text": "a"}),
        ("train.json.gz", '[{"text": "a"}]', {"text": "a"}),
        ("train.csv.GZ", "text\na\n", {"text": "a"}),
    ],
)
def test_packed_files_are_read(tmp_path: Path, name: str, text: str, expected: dict[str, str]) -> None:
    assert [record.value for record in read(tmp_path / name, gzip.compress(text.encode()))] == [expected]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"text": "a"}\n', "train.jsonl.gz line 1: cannot be unpacked: Not a gzipped file"),
        (gzip.compress(b'{"text": "a"}\n' * 1000)[:-9], "cannot be unpacked: Compressed file ended before"),
    ],
)
def test_a_file_that_cannot_be_unpacked_is_told(tmp_path: Path, content: bytes, words: str) -> None:
    (found,) = problems(read(tmp_path / "train.jsonl.gz", content))
    assert words in found
