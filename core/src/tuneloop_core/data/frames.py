"""Conversations of one shape are written by a template in one frame: learnt once, then proven by one rendering a row.

``spans`` proves an assistant's place by rendering a conversation three more times for each turn. Most rows of a
dataset have one of a few shapes (the same roles in the same order), and their renderings differ in the messages'
texts only. So the text around the messages is learnt from the first row of a shape; a later row's rendering is
compared with that frame around its own messages, letter by letter. Where they differ (a template that drops earlier
thinking, a text that it rewrites), nothing is assumed and the row goes the long way. Never tokenizes.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop_core.data.spans import Message, Render, Span, find_spans

SHAPES = 512  # remembered; a dataset with more different ones goes the long way with the rest
MISFITS = 16  # rows in a row that a frame did not fit before it is given up


@dataclass
class Frame:
    """What a template writes around the messages of one shape."""

    pieces: list[str]  # before, between and behind the messages: one more than there are messages
    turns: list[tuple[int, int, int]]  # (message, characters from its text to the span's start and end)
    misfits: int = 0

    def fit(self, text: str, contents: Sequence[str]) -> list[Span] | None:
        """The spans, where ``text`` is this frame around the contents, or around them stripped; else None."""
        stripped = [content.strip() for content in contents]
        fitting = contents if self._wraps(text, contents) else stripped if self._wraps(text, stripped) else None
        self.misfits = 0 if fitting is not None else self.misfits + 1
        return None if fitting is None else self._spans(fitting)

    def _wraps(self, text: str, contents: Sequence[str]) -> bool:
        inner = (part for pair in zip(self.pieces, contents, strict=False) for part in pair)
        return text == "".join((*inner, self.pieces[-1]))

    def _spans(self, contents: Sequence[str]) -> list[Span]:
        starts, at = [], 0
        for piece, content in zip(self.pieces, contents, strict=False):
            starts.append(at + len(piece))
            at += len(piece) + len(content)
        return [
            (starts[message] + before, starts[message] + len(contents[message]) + behind)
            for message, before, behind in self.turns
        ]


class Frames:
    """The frames of one template, learnt as rows come."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Frame | None] = {}

    def find(
        self,
        render: Render,
        messages: Sequence[Message],
        closers: Sequence[str] = (),
        first: int = 0,
        kind: Hashable = None,
    ) -> tuple[str, list[Span]]:
        """As ``find_spans``, with one rendering where the frame is known. ``kind`` is what else the text hangs on."""
        shape = _shape(messages, first, kind)
        frame = self._known.get(shape)
        if frame is not None and frame.misfits < MISFITS:
            text = render(messages, add_generation_prompt=False)
            if (spans := frame.fit(text, _contents(messages))) is not None:
                return text, spans
        text, spans = find_spans(render, messages, closers, first)
        if shape is not None and shape not in self._known and len(self._known) < SHAPES:
            self._known[shape] = _learn(render, messages, first, text, spans)
        return text, spans


def _shape(messages: Sequence[Message], first: int, kind: Hashable) -> Hashable | None:
    """Roles in their order; None for messages that have more than a role and a text."""
    if any(len(message) != 2 or "content" not in message for message in messages):
        return None
    return tuple(message["role"] for message in messages), first, kind


def _learn(render: Render, messages: Sequence[Message], first: int, text: str, spans: Sequence[Span]) -> Frame | None:
    """The frame of a row whose spans are proven; None where the row itself does not fit in what is found."""
    words = [f"\u00ab{index}qxv\u00bb" for index in range(len(messages))]
    stand_ins = [{**message, "content": word} for message, word in zip(messages, words, strict=True)]
    try:
        pieces = _split(render(stand_ins, add_generation_prompt=False), words)
    except Exception:  # a template raises what it likes; such a shape has no frame
        return None
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant" and index >= first]
    plain = Frame(pieces or [], [(index, 0, 0) for index in turns])
    if pieces is None or (bare := plain.fit(text, _contents(messages))) is None:
        return None
    offsets = [(span[0] - own[0], span[1] - own[1]) for span, own in zip(spans, bare, strict=True)]
    return Frame(pieces, [(index, *offset) for index, offset in zip(turns, offsets, strict=True)])


def _split(text: str, words: Sequence[str]) -> list[str] | None:
    """What lies around the words; None unless each is there once, in order."""
    pieces, rest = [], text
    for word in words:
        if rest.count(word) != 1:
            return None
        piece, _, rest = rest.partition(word)
        pieces.append(piece)
    return [*pieces, rest]


def _contents(messages: Sequence[Message]) -> list[Any]:
    return [message["content"] for message in messages]
