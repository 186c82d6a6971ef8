"""Reading a stream: the same result however it is cut."""

import json

import pytest
from gateway_world import event, usage_event

from tuneloop_gateway.sse import HELD_LIMIT, EventReader, Usage

ROLE = event({"role": "assistant", "content": ""})
TOKEN = event({"content": " hi"})
LAST = event({}, finish="stop")
DONE = b"data: [DONE]\n\n"
TRICKY = event({"content": '"usage":{"prompt_tokens":1},"choices":[]\n\ndata: \\'})
CHAT = [ROLE, TOKEN, TRICKY, TOKEN, LAST]


def read(pieces: list[bytes], drop: bool) -> tuple[bytes, int, Usage | None]:
    reader = EventReader(drop)
    fed = [reader.feed(piece) for piece in pieces]
    return b"".join(data for data, _ in fed) + reader.rest(), sum(count for _, count in fed), reader.usage


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("size", [*range(1, 24), 100, 300, 1000, 10_000])
def test_cut_into_pieces_of_any_size(size: int, drop: bool) -> None:
    whole = b"".join([*CHAT, usage_event(7, 3), DONE])
    kept = b"".join([*CHAT, DONE]) if drop else whole
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert read(pieces, drop) == (kept, 3, Usage(7, 3))


def test_cut_in_two_anywhere() -> None:
    whole = b"".join([TOKEN, usage_event(7, 3), DONE])
    for at in range(len(whole)):
        assert read([whole[:at], whole[at:]], True) == (TOKEN + DONE, 1, Usage(7, 3)), at


def test_crlf_events() -> None:
    whole = b"".join([TOKEN, usage_event(7, 3), DONE]).replace(b"\n", b"\r\n")
    for at in range(len(whole)):
        assert read([whole[:at], whole[at:]], True) == ((TOKEN + DONE).replace(b"\n", b"\r\n"), 1, Usage(7, 3)), at


@pytest.mark.parametrize(
    ("delta", "outputs"),
    [
        ({"content": "x"}, 1),
        ({"content": ""}, 0),
        ({"role": "assistant"}, 0),
        ({"content": None}, 0),
        ({"reasoning_content": "hm"}, 1),
        ({"reasoning": "hm"}, 1),
        ({"refusal": "no"}, 1),
        ({"content": "", "reasoning_content": "hm"}, 1),
        ({"content": '\\"content\\":\\"'}, 1),
        ({"role": '","content\\":"x'}, 0),
        ({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]}, 1),
        ({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}, 1),
        ({"tool_calls": [{"index": 0, "function": {"arguments": ""}}]}, 0),
    ],
)
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_what_counts_as_output(delta: dict[str, object], outputs: int, separators: tuple[str, str]) -> None:
    body = json.dumps({"choices": [{"index": 0, "delta": delta}]}, separators=separators).encode()
    assert read([b"data: " + body + b"\n\n"], True)[1] == outputs


def test_completions_have_text() -> None:
    assert read([b'data: {"choices":[{"index":0,"text":" a"}]}\n\n'], True)[1] == 1


def test_the_marker_follows_the_server_s_wording() -> None:
    """Reasoning first, then content: both count."""
    pieces = [event({"reasoning": "a"}), event({"reasoning": "b"}), event({"content": "c"}), event({"reasoning": "d"})]
    assert read(pieces, True)[1] == 4


@pytest.mark.parametrize(
    ("payload", "dropped", "usage"),
    [
        ({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}, True, Usage(1, 2)),
        ({"choices": [{}], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}, False, Usage(1, 2)),
        ({"choices": [], "usage": {"prompt_tokens": 5}}, True, Usage(5, 0)),
        ({"choices": [], "usage": None}, False, None),
        ({"choices": [], "usage": {"prompt_tokens": "x"}}, False, None),
        ({"usage": {"prompt_tokens": 1, "completion_tokens": 2}}, False, Usage(1, 2)),
        ({"error": {"message": "usage"}}, False, None),
    ],
)
def test_which_event_is_the_extra_one(payload: dict[str, object], dropped: bool, usage: Usage | None) -> None:
    data = b"data: " + json.dumps(payload).encode() + b"\n\n"
    assert read([data], True) == (b"" if dropped else data, 0, usage)
    assert read([data], False)[0] == data


def test_broken_json_passes() -> None:
    data = b'data: {"usage":{ not json\n\n'
    assert read([data], True) == (data, 0, None)


def test_an_endless_event_is_not_held() -> None:
    reader = EventReader(True)
    passed = b"".join(reader.feed(b"x" * 65536)[0] for _ in range(HELD_LIMIT // 65536 + 2))
    assert len(passed) + len(reader.rest()) == (HELD_LIMIT // 65536 + 2) * 65536
    assert reader.feed(b"more") == (b"more", 0)
