"""Prompts and the answers to them: where one ends and the other begins, in the spellings that preference data has.

The prompt may stand by itself, or be the beginning that ``chosen`` and ``rejected`` share (then it is cut off them).
What comes out is of one kind: all strings, or all lists of messages. Never touches a template.
"""

from collections.abc import Sequence
from os.path import commonprefix
from typing import Any

from tuneloop_core.data.fields import BadRowError, filled, kind, lacks, text, unfolded
from tuneloop_core.data.messages import Message, parse_messages

Turns = str | list[Message]  # a text, or messages

_ALIKE = "{} do not begin alike, so that no prompt can be found"


def parse_answers(record: dict[str, Any], keys: Sequence[str]) -> tuple[Turns, list[Turns]]:
    """The prompt of a row and the answers under ``keys`` (one or two); raises ``BadRowError``."""
    prompt = _turns(record, "prompt") if record.get("prompt") is not None else None
    answers = [_turns(record, key) for key in keys]
    if all(isinstance(turns, str) for turns in [*answers, prompt or ""]):
        return _texts(record, prompt, keys)
    lists = [_as_answer(answer) for answer in answers]
    if prompt is None:
        prompt, lists = _shared(lists, keys)
    else:
        prompt, lists = _without_prompt(prompt, lists, keys)
    for key, answer in zip(keys, lists, strict=True):
        _require_answer(key, answer)
    return prompt, list(lists)


def _turns(record: dict[str, Any], key: str) -> Turns:
    if key not in record:
        raise BadRowError(lacks(record, key))
    value = unfolded(record[key])
    if isinstance(value, list):
        return parse_messages({key: value}, key)
    if not isinstance(value, str):
        raise BadRowError(f"{key} is {kind(value)}, not a string or a list of messages")
    return text(record, key) if key == "prompt" else filled(record, key)


def _texts(record: dict[str, Any], prompt: Turns | None, keys: Sequence[str]) -> tuple[Turns, list[Turns]]:
    answers = [filled(record, key) for key in keys]
    if isinstance(prompt, str):
        return prompt, list(answers)
    if len(keys) == 1:
        raise BadRowError(lacks(record, "prompt"))
    shared = commonprefix(answers)
    end = max(shared.rfind(" "), shared.rfind("\n"))  # never within a word
    if end <= 0:
        raise BadRowError(f"{lacks(record, 'prompt')}, and {_ALIKE.format(' and '.join(keys))}")
    return shared[:end], [answer[end:] for answer in answers]


def _as_answer(turns: Turns) -> list[Message]:
    return [{"role": "assistant", "content": turns}] if isinstance(turns, str) else turns


def _shared(lists: list[list[Message]], keys: Sequence[str]) -> tuple[list[Message], list[list[Message]]]:
    """The messages that all begin with; one is left to each, and an answer is never asked for by an answer."""
    end = len(lists[0]) if len(lists) == 1 else _equal(lists)
    end = min(end, *(len(answer) - 1 for answer in lists))
    while end and lists[0][end - 1]["role"] == "assistant":
        end -= 1
    if not end:
        raise BadRowError(f"has no prompt, and {_ALIKE.format(' and '.join(keys))}")
    return lists[0][:end], [answer[end:] for answer in lists]


def _equal(lists: list[list[Message]]) -> int:
    """How many messages two conversations begin with alike."""
    pairs = enumerate(zip(*lists, strict=False))
    return next((index for index, (left, right) in pairs if left != right), min(map(len, lists)))


def _without_prompt(
    prompt: Turns, lists: list[list[Message]], keys: Sequence[str]
) -> tuple[list[Message], list[list[Message]]]:
    """Answers that repeat the prompt lose it; a prompt in words is what the user says."""
    if isinstance(prompt, str) and all(any(said["role"] == "user" for said in answer) for answer in lists):
        return _shared(lists, keys)
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return asked, [answer[len(asked) :] if answer[: len(asked)] == asked else answer for answer in lists]


def _require_answer(key: str, answer: list[Message]) -> None:
    if not answer or answer[-1]["role"] != "assistant":
        raise BadRowError(f"{key} does not end with an assistant's message, so there is nothing to learn from it")
