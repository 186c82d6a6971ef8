"""Rows, files and the survey: what is read, what is refused, and with which words."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tuneloop_core.data.files import DatasetError, find_files, read_records
from tuneloop_core.data.rows import BadRowError, ChatRow, CompletionRow, Format, TextRow, detect, parse
from tuneloop_core.data.survey import read_rows, survey

GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def write(path: Path, *lines: Any) -> Path:
    texts = (line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    path.write_bytes(b"\n".join(texts) + b"\n")
    return path


@pytest.mark.parametrize(
    ("record", "format_", "row"),
    [
        (GOOD, Format.CHAT, ChatRow((("user", "q"), ("assistant", "a")))),
        ({"instruction": "i", "output": "o"}, Format.INSTRUCTION, ChatRow((("user", "i"), ("assistant", "o")))),
        (
            {"instruction": "i", "input": "x", "output": "o"},
            Format.INSTRUCTION,
            ChatRow((("user", "i\n\nx"), ("assistant", "o"))),
        ),
        ({"prompt": "p", "completion": "c"}, Format.COMPLETION, CompletionRow("p", "c")),
        ({"text": "t"}, Format.TEXT, TextRow("t")),
    ],
)
def test_each_format_is_detected_and_read(record: dict[str, Any], format_: Format, row: object) -> None:
    assert detect(record) is format_
    assert parse(record, format_, has_template=True) == row


def test_instructions_become_prompts_where_the_model_has_no_template() -> None:
    row = parse({"instruction": "Do.", "output": "Done."}, Format.INSTRUCTION, has_template=False)
    assert row == CompletionRow("### Instruction:\nDo.\n\n### Response:\n", "Done.")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"messages": []}, "messages is empty"),
        ({"messages": "hello"}, "no messages, a list"),
        ({"messages": [{"role": "user", "content": "q"}]}, "no message has the role assistant"),
        ({"messages": [{"role": "bot", "content": "q"}]}, r"messages\[0\].role is 'bot'"),
        ({"messages": [{"role": "assistant", "content": " "}]}, r"messages\[0\].content is empty"),
        ({"messages": [{"role": "assistant", "content": None}]}, r"messages\[0\].content is null, not a string"),
        ({"messages": [{"role": "assistant"}]}, "no messages"),
        ({"messages": [{"role": "assistant", "content": "a", "weight": 0}]}, "has weight; only role"),
        ({"messages": [{"role": "assistant", "content": "\ud800"}]}, "half a surrogate pair"),
        ({"text": "t"}, "has text but no messages"),
    ],
)
def test_bad_chat_rows_say_what_is_wrong(record: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRowError, match=words):
        parse(record, Format.CHAT, has_template=True)


def test_sharegpt_is_told_how_to_rename() -> None:
    with pytest.raises(BadRowError, match="ShareGPT: rename conversations to messages"):
        detect({"conversations": []})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"text": ', "not JSON: .* at column"),
        (b'"text"', "is JSON but not an object"),
        (b"[1, 2]", "one JSON array"),
        (b'{"text": "\xff"}', "not UTF-8: byte 0xff at position 11"),
        ("\ufeff{}".encode("utf-16"), "UTF-16"),
        (b"[" * 100_000, "JSON"),
    ],
)
def test_lines_that_are_no_objects_are_told_apart(tmp_path: Path, line: bytes, words: str) -> None:
    (record, *_) = read_records(write(tmp_path / "train.jsonl", line))
    assert record.value is None
    assert re.search(words, record.problem)


def test_blank_lines_and_a_byte_order_mark_are_no_problem(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), b"", b"  ", GOOD)
    assert [(record.line, record.problem) for record in read_records(path)] == [(1, ""), (4, "")]


def test_the_survey_names_the_first_ten_bad_lines_and_what_was_expected(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", GOOD, *[{"messages": []}] * 12)
    seen = survey([path], Format.AUTO, has_template=True)
    with pytest.raises(DatasetError) as caught:
        seen.require_good()
    message = str(caught.value)
    assert message.startswith("12 of 13 rows are bad: train.jsonl line 2: messages is empty; train.jsonl line 3")
    assert "line 11" in message
    assert "line 12" not in message
    assert message.endswith('{"role": "assistant", "content": "..."}]}')


def test_the_survey_counts_duplicates_and_reads_a_mixed_file_as_bad(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", GOOD, GOOD, {"text": "t"})
    seen = survey([path], Format.AUTO, has_template=True)
    assert (seen.rows, seen.duplicates, seen.bad_rows) == (2, 1, 1)


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.jsonl").write_bytes(content)
    with pytest.raises(DatasetError, match="the dataset is empty"):
        survey([tmp_path / "train.jsonl"], Format.AUTO, has_template=True)


def test_wrong_columns_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", {"question": "q", "answer": "a"})
    with pytest.raises(DatasetError, match=r"line 1: columns answer, question match no format\. Each line should be"):
        survey([path], Format.AUTO, has_template=True)


def test_rows_keep_their_line(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", GOOD, b"", GOOD)
    assert [record.line for record, _ in read_rows([path], Format.CHAT, has_template=True)] == [1, 3]


@pytest.mark.parametrize(
    ("names", "train", "validation"),
    [
        (["train.jsonl"], ["train.jsonl"], []),
        (["data.jsonl"], ["data.jsonl"], []),
        (["train.jsonl", "validation.jsonl", "test.jsonl"], ["train.jsonl"], ["validation.jsonl"]),
        (["train-0.jsonl", "train-1.jsonl", "test.jsonl"], ["train-0.jsonl", "train-1.jsonl"], ["test.jsonl"]),
    ],
)
def test_files_are_found_by_name(tmp_path: Path, names: list[str], train: list[str], validation: list[str]) -> None:
    for name in names:
        write(tmp_path / name, GOOD)
    found = find_files(tmp_path)
    assert [path.name for path in found.train] == train
    assert [path.name for path in found.validation] == validation


def test_a_folder_without_json_lines_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "train.arrow").write_bytes(b"ARROW1")
    with pytest.raises(DatasetError, match=r"found train\.arrow: convert it"):
        find_files(tmp_path)


def test_several_files_without_a_train_file_are_named(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path / name, GOOD)
    with pytest.raises(DatasetError, match=r"2 files \(a\.jsonl, b\.jsonl\)"):
        find_files(tmp_path)
