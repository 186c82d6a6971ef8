"""Finding the assistant's turns in a rendered conversation, for templates without ``{% generation %}`` markers.

A chat template is a program: it may add a default system prompt, strip texts, drop the thinking of earlier turns or
treat the last turn otherwise. So nothing is assumed about its text. A turn's span starts where the model is asked to
go on (the render of what came before, with the generation prompt) and ends where its turn ends; where that prefix
does not hold, the content is located by rendering twice with different stand-ins. A turn that calls tools is trained
from where generation would start to the token that ends a turn. Never tokenizes; a span that cannot be proven raises
``SpanError``.
"""

from collections.abc import Sequence
from itertools import pairwise
from os.path import commonprefix
from typing import Any, Protocol

Message = dict[str, Any]
Span = tuple[int, int]  # characters, end excluded

STAND_INS = ("\u00abqxv7\u00bb", "jz\u00a73wk")


class Render(Protocol):
    """A chat template: messages to text. May raise any exception for messages it does not like."""

    def __call__(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """Render."""
        ...


class SpanError(ValueError):
    """The template's output gives no provable place for an assistant's message."""


def find_spans(
    render: Render, messages: Sequence[Message], closers: Sequence[str] = (), first: int = 0
) -> tuple[str, list[Span]]:
    """Render a conversation and find what the model should learn to write.

    ``closers`` are the tokenizer's special tokens: one that follows an answer directly ends the turn and is trained
    with it, so that the model learns to stop. Messages before ``first`` are not learned. Returns the text and one
    span for each assistant message, in order.
    """
    text = render(messages, add_generation_prompt=False)
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant" and index >= first]
    spans = [_turn_span(render, messages, index, text, closers) for index in turns]
    if any(later[0] < earlier[1] for earlier, later in pairwise(spans)):
        raise SpanError("the template writes assistant messages in another order than they came")
    return text, spans


def _turn_span(render: Render, messages: Sequence[Message], index: int, text: str, closers: Sequence[str]) -> Span:
    if messages[index].get("tool_calls"):
        return _call_span(render, messages, index, text, closers)
    content_start, content_end = _content_span(render, messages, index, text)
    end = _past_closer(text, content_end, closers)
    start = _prefix_length(render, messages, index, text)
    return (content_start if start is None or start > content_start else start), end


def _prefix_length(render: Render, messages: Sequence[Message], index: int, text: str) -> int | None:
    """Where generation would start, if the render of the earlier messages is a prefix of the whole."""
    try:
        prefix = render(messages[:index], add_generation_prompt=True)
    except Exception:  # templates raise what they like; the other way then decides
        return None
    return len(prefix) if text.startswith(prefix) else None


def _content_span(render: Render, messages: Sequence[Message], index: int, text: str) -> Span:
    """Where the content of message ``index`` lies: between what two stand-ins leave unchanged."""
    first, second = (render(_replaced(messages, index, word), add_generation_prompt=False) for word in STAND_INS)
    head = len(commonprefix([first, second]))
    tail = first[head + len(STAND_INS[0]) :]
    if first[head : head + len(STAND_INS[0])] != STAND_INS[0] or second != first[:head] + STAND_INS[1] + tail:
        raise SpanError(f"the template does not write message {index} (assistant) once and unchanged")
    end = len(text) - len(tail)
    _verify(text, first[:head], tail, messages[index]["content"], index)
    return head, end


def _call_span(render: Render, messages: Sequence[Message], index: int, text: str, closers: Sequence[str]) -> Span:
    """A turn that calls tools: what lies behind its calls is what two stand-ins for them leave unchanged."""
    first, second = (render(_calling(messages, index, word), add_generation_prompt=False) for word in STAND_INS)
    if first == second:
        raise SpanError(f"the template does not write tool calls (message {index}); take a model trained with tools")
    start = _prefix_length(render, messages, index, text)
    behind = len(commonprefix([text[::-1], first[::-1], second[::-1]]))
    closer = _turn_closer(render, closers)
    end = text.find(closer, len(text) - behind) if closer else -1
    if start is None or end < start:
        raise SpanError(
            f"the place of the tool calls of message {index} (assistant) in the template's text is not sure"
        )
    return start, end + len(closer)


def _calling(messages: Sequence[Message], index: int, name: str) -> list[Message]:
    """The messages with one call of a tool of that name for those of message ``index``."""
    call = {**messages[index]["tool_calls"][0], "function": {"name": name, "arguments": {}}}
    return [{**message, "tool_calls": [call]} if at == index else message for at, message in enumerate(messages)]


def _turn_closer(render: Render, closers: Sequence[str]) -> str:
    """The special token that ends an assistant's turn in this template, or an empty string."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = render(messages, add_generation_prompt=False)
    end = _content_span(render, messages, 1, text)[1]
    return text[end : _past_closer(text, end, closers)]


def _verify(text: str, head: str, tail: str, content: str, index: int) -> None:
    between = text[len(head) : len(text) - len(tail)]
    whole = text.startswith(head) and text.endswith(tail) and len(head) + len(tail) <= len(text)
    if not whole or between.strip() != content.strip():
        raise SpanError(f"the template rewrites the text of message {index} (assistant)")


def _replaced(messages: Sequence[Message], index: int, content: str) -> list[Message]:
    return [{**message, "content": content} if at == index else message for at, message in enumerate(messages)]


def _past_closer(text: str, end: int, closers: Sequence[str]) -> int:
    """Extend over the special token that directly follows, the longest that fits."""
    fitting = [closer for closer in closers if closer and text.startswith(closer, end)]
    return end + max(map(len, fitting), default=0)
