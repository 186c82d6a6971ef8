"""Tools, preferences and classes: what each row becomes, what is refused, and with which words."""

import json
import re
from typing import Any

import pytest

from tuneloop_core.data.columns import Columns
from tuneloop_core.data.objectives import LEARNS_FROM, mismatch
from tuneloop_core.data.rows import (
    EXPECTED,
    BadRowError,
    ChatRow,
    ClassRow,
    CompletionRow,
    Format,
    PreferenceRow,
    Row,
    TextRow,
    UnpairedRow,
    detect,
    parse,
    read_row,
)

USER = {"role": "user", "content": "Weather in Paris?"}
GOOD = {"role": "assistant", "content": "Mild."}
BAD = {"role": "assistant", "content": "No."}
FUNCTION = {"name": "weather", "description": "", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
ANSWER = {"role": "tool", "content": "21", "name": "weather"}
TOOL_CHAT = ChatRow.of([USER, CALLING, ANSWER, GOOD], [TOOL])


@pytest.mark.parametrize(
    ("record", "format_", "row"),
    [
        ({"messages": [USER, CALLING, ANSWER, GOOD], "tools": [TOOL]}, Format.CHAT, TOOL_CHAT),
        ({"messages": [USER, CALLING, ANSWER, GOOD], "tools": json.dumps([TOOL])}, Format.CHAT, TOOL_CHAT),
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "content": None, "tool_calls": [{"function": json.dumps(CALL["function"])}]},
                    {**ANSWER, "tool_calls": None},
                    {**GOOD, "tool_calls": []},
                ],
                "tools": [TOOL],
            },
            Format.CHAT,
            TOOL_CHAT,
        ),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, Format.PREFERENCE, PreferenceRow("p", "a", "b")),
        (
            {"chosen": "Human: hi\nBot: good day", "rejected": "Human: hi\nBot: go away"},
            Format.PREFERENCE,
            PreferenceRow("Human: hi\nBot:", " good day", " go away"),
        ),
        (
            {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
            Format.PREFERENCE,
            PreferenceRow([USER], [GOOD], [BAD]),
        ),
        (
            {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
            Format.PREFERENCE,
            PreferenceRow([USER], [GOOD], [BAD]),
        ),
        (
            {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            Format.PREFERENCE,
            PreferenceRow([USER], [GOOD], [BAD]),
        ),
        (
            {"prompt": USER["content"], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            Format.PREFERENCE,
            PreferenceRow([USER], [GOOD], [BAD]),
        ),
        (
            {"prompt": USER["content"], "chosen": [GOOD], "rejected": [BAD]},
            Format.PREFERENCE,
            PreferenceRow([USER], [GOOD], [BAD]),
        ),
        (
            {"prompt": [USER], "chosen": "Mild.", "rejected": "No."},
            Format.PREFERENCE,
            PreferenceRow([USER], [GOOD], [BAD]),
        ),
        (
            {"chosen": [USER, BAD, USER, GOOD], "rejected": [USER, BAD, USER, BAD], "tools": [TOOL]},
            Format.PREFERENCE,
            PreferenceRow([USER, BAD, USER], [GOOD], [BAD], [TOOL]),
        ),
        (
            {"prompt": "p", "completion": "c", "label": True},
            Format.UNPAIRED_PREFERENCE,
            UnpairedRow("p", "c", label=True),
        ),
        (
            {"prompt": [USER], "completion": [BAD], "label": "false"},
            Format.UNPAIRED_PREFERENCE,
            UnpairedRow([USER], [BAD], label=False),
        ),
        ({"text": "t", "label": "good"}, Format.CLASSIFICATION, ClassRow("t", "good")),
        ({"text": "t", "label": 2}, Format.CLASSIFICATION, ClassRow("t", "2")),
        ({"text": "t", "label": 2.0}, Format.CLASSIFICATION, ClassRow("t", "2")),
        ({"text": "t", "label": True}, Format.CLASSIFICATION, ClassRow("t", "true")),
    ],
)
def test_each_spelling_becomes_its_row(record: dict[str, Any], format_: Format, row: Row) -> None:
    assert detect(record) is format_
    parsed = parse(record, format_, has_template=True)
    assert parsed == row
    assert read_row(json.loads(json.dumps(parsed.as_json()))) == row
    assert parsed.group()


@pytest.mark.parametrize(
    "row", [ChatRow((("user", "q"), ("assistant", "a"))), CompletionRow("p", "c"), TextRow("t"), ClassRow("t", 3)]
)
def test_a_normalised_line_is_read_back(row: Row) -> None:
    assert read_row(json.loads(json.dumps(row.as_json()))) == row


@pytest.mark.parametrize(
    ("record", "objective", "format_"),
    [
        ({"text": "t", "label": 1}, "SFT", Format.TEXT),
        ({"text": "t", "label": 1}, "Classification", Format.CLASSIFICATION),
        ({"prompt": "p", "completion": "c", "label": True}, "SFT", Format.COMPLETION),
        ({"prompt": "p", "completion": "c", "label": True}, "KTO", Format.UNPAIRED_PREFERENCE),
        ({"prompt": "p", "chosen": [], "rejected": [], "messages": []}, "DPO", Format.PREFERENCE),
        ({"prompt": "p", "chosen": [], "rejected": [], "messages": []}, "SFT", Format.CHAT),
        ({"text": "t"}, "DPO", Format.TEXT),
    ],
)
def test_of_several_formats_the_objectives_is_found(record: dict[str, Any], objective: str, format_: Format) -> None:
    assert detect(record, LEARNS_FROM[objective]) is format_


@pytest.mark.parametrize(
    ("format_", "record", "words"),
    [
        (Format.CHAT, {"messages": [USER, GOOD], "tools": {}}, "tools is an object, not a list of functions"),
        (Format.CHAT, {"messages": [USER, GOOD], "tools": [{"type": "function"}]}, r"tools\[0\] is no function: "),
        (Format.CHAT, {"messages": [USER, {**CALLING, "tool_calls": "x"}]}, r"\]\.tool_calls is a string, not a list"),
        (Format.CHAT, {"messages": [{**USER, "tool_calls": [CALL]}]}, "its role is user: only an assistant calls"),
        (Format.CHAT, {"messages": [{**CALLING, "tool_calls": [1]}]}, r"\.tool_calls\[0\] is no call: "),
        (
            Format.CHAT,
            {"messages": [{**CALLING, "tool_calls": [{"function": {"name": "f", "arguments": "x"}}]}]},
            r"tool_calls\[0\] has arguments that are a string, not an object",
        ),
        (Format.CHAT, {"messages": [{**CALLING, "tool_calls": [{"function": {}}]}]}, "has no columns but no .*name"),
        (Format.CHAT, {"messages": [{**GOOD, "weight": 0}]}, "has weight; only role, content, name, tool_call_id, to"),
        (Format.CHAT, {"messages": [{"role": "user", "content": ["hi"]}]}, "content is a list, not a string"),
        (Format.CHAT, {"messages": [GOOD], "tools": [{"name": "\ud800"}]}, "tools holds half a surrogate pair"),
        (Format.COMPLETION, {"prompt": "p"}, "has prompt but no completion"),
        (Format.COMPLETION, {"prompt": "p", "completion": " "}, "completion is empty"),
        (Format.COMPLETION, {"prompt": 1, "completion": "c"}, "prompt is a number, not a string"),
        (Format.INSTRUCTION, {"instruction": "i", "output": None}, "output is null, not a string"),
        (Format.INSTRUCTION, {"instruction": "i", "input": 3, "output": "o"}, "input is a number, not a string"),
        (Format.TEXT, {"text": ""}, "text is empty"),
        (Format.TEXT, {"body": "b"}, "has body but no text"),
        (Format.PREFERENCE, {"prompt": "p", "chosen": "a"}, "has chosen, prompt but no rejected"),
        (Format.PREFERENCE, {"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen and rejected are equal"),
        (Format.PREFERENCE, {"prompt": "p", "chosen": "a", "rejected": ""}, "rejected is empty"),
        (
            Format.PREFERENCE,
            {"prompt": "p", "chosen": 1, "rejected": "b"},
            "chosen is a number, not a string or a list",
        ),
        (
            Format.PREFERENCE,
            {"chosen": "one", "rejected": "two"},
            "but no prompt, and chosen and rejected do not begin",
        ),
        (
            Format.PREFERENCE,
            {"chosen": [GOOD], "rejected": [BAD]},
            "has no prompt, and chosen and rejected do not begin",
        ),
        (
            Format.PREFERENCE,
            {"prompt": [USER], "chosen": [USER], "rejected": [BAD]},
            "chosen does not end with an assistant's message",
        ),
        (
            Format.PREFERENCE,
            {"prompt": [USER], "chosen": [{"role": "assistant", "content": ""}], "rejected": [BAD]},
            r"chosen\[0\]\.content is empty",
        ),
        (Format.UNPAIRED_PREFERENCE, {"prompt": "p", "completion": "c"}, "has completion, prompt but no label"),
        (
            Format.UNPAIRED_PREFERENCE,
            {"prompt": "p", "completion": "c", "label": "good"},
            "label is 'good', not true or",
        ),
        (
            Format.UNPAIRED_PREFERENCE,
            {"prompt": "p", "completion": "c", "label": 0.5},
            "label is 0.5, not true or false",
        ),
        (
            Format.UNPAIRED_PREFERENCE,
            {"prompt": "p", "completion": "c", "label": None},
            "label is null, not true or fal",
        ),
        (Format.UNPAIRED_PREFERENCE, {"completion": "c", "label": True}, "has completion, label but no prompt"),
        (Format.CLASSIFICATION, {"text": "t"}, "has text but no label"),
        (Format.CLASSIFICATION, {"text": "t", "label": [1, 2]}, "label is a list, not the name or number of a class"),
        (Format.CLASSIFICATION, {"text": "t", "label": 0.5}, "label is a number, not the name or number of a class"),
        (Format.CLASSIFICATION, {"text": "t", "label": " "}, "label is empty"),
        (Format.CLASSIFICATION, {"text": "", "label": 1}, "text is empty"),
    ],
)
def test_each_bad_row_says_what_is_wrong(format_: Format, record: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRowError, match=words):
        parse(record, format_, has_template=True)


@pytest.mark.parametrize(
    ("objective", "format_", "words"),
    [
        ("DPO", Format.CHAT, "the rows are Chat .*, and objective DPO .* such as .*chosen.*, or take objective SFT"),
        ("SFT", Format.PREFERENCE, "the rows are Preference .* or take objective DPO"),
        ("KTO", Format.PREFERENCE, "such as .*completion.*label.*, or take objective DPO"),
        ("Classification", Format.TEXT, "and task SequenceClassification does not learn .*, or take objective SFT"),
        ("SFT", Format.CLASSIFICATION, "or take task SequenceClassification"),
    ],
)
def test_rows_that_an_objective_cannot_learn_from_are_told(objective: str, format_: Format, words: str) -> None:
    assert re.search(words, mismatch(objective, format_))


def test_every_format_belongs_to_one_objective() -> None:
    assert sorted(each for formats in LEARNS_FROM.values() for each in formats) == sorted(EXPECTED)
    assert not any(mismatch(objective, each) for objective, formats in LEARNS_FROM.items() for each in formats)


@pytest.mark.parametrize(
    ("names", "record", "renamed"),
    [
        ({}, {"a": 1}, {"a": 1}),
        ({"prompt": "question"}, {"question": "q", "other": 1}, {"prompt": "q", "other": 1}),
        ({"completion": "answer"}, {"answer": "a", "completion": "hidden"}, {"completion": "a"}),
        (
            {"prompt": "completion", "completion": "prompt"},
            {"prompt": 1, "completion": 2},
            {"prompt": 2, "completion": 1},
        ),
        ({"input": "context"}, {"instruction": "i"}, {"instruction": "i"}),
        (
            {"messages": "conversations", "role": "from", "content": "value"},
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        ),
        ({"role": "from"}, {"messages": "text"}, {"messages": "text"}),
    ],
)
def test_columns_are_renamed(names: dict[str, str], record: dict[str, Any], renamed: dict[str, Any]) -> None:
    assert Columns(names).rename(record) == renamed


def test_a_mapped_column_that_a_row_lacks_is_named() -> None:
    columns = Columns({"prompt": "question", "completion": "answer"})
    assert (
        columns.missing({"question": "q"})
        == " (dataset.columns maps completion to answer, which the row does not have)"
    )
    assert columns.missing({"question": "q", "answer": "a"}) == ""
