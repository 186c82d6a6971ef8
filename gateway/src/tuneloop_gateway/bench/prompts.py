"""What is asked: prompts from a file, or made up to a length. The same seed gives the same prompts. Never measures."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

# Common words that tokenizers of English keep whole, so that a made-up prompt is about as many tokens as it has words.
COMMON = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which "
    "one you were her all she there would their we him been has when who will more no if out so said what up its "
    "about into than them can only other new some could time these two may then do first any my now such like our "
    "over man me even most made after also did many before must through back years where much your way well down"
)
WORDS = tuple(COMMON.split())


@dataclass(frozen=True)
class Prompt:
    """One request's words. ``messages`` for chat, else ``text``; ``max_tokens`` overrides the run's own."""

    text: str = ""
    messages: tuple[dict[str, Any], ...] = ()
    max_tokens: int | None = None

    def as_chat(self) -> list[dict[str, Any]]:
        """Messages for ``/chat/completions``."""
        return list(self.messages) or [{"role": "user", "content": self.text}]

    def as_text(self) -> str:
        """Text for ``/completions``."""
        return self.text or "\n".join(str(message.get("content", "")) for message in self.messages)


def synthetic(count: int, tokens: int, seed: int) -> list[Prompt]:
    """Prompts of about ``tokens`` tokens, each with another beginning: a cached prefix must not flatter the server."""
    chance = random.Random(seed)  # noqa: S311 - words, not secrets
    return [Prompt(" ".join(chance.choices(WORDS, k=max(1, tokens)))) for _ in range(count)]


def repeated(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """``count`` prompts: all of them in a shuffled order, again and again."""
    order = list(prompts)
    random.Random(seed).shuffle(order)  # noqa: S311 - an order, not a secret
    return [order[number % len(order)] for number in range(count)]


def read(path: Path) -> list[Prompt]:
    """Prompts of a file: JSON Lines with ``prompt`` or ``messages`` (and ``max_tokens``), or else a prompt a line.

    Raises:
        ValueError: the file cannot be read, is empty, or a line is not as it should be; names the line.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    parse = _parse_json if path.suffix in {".jsonl", ".json"} else Prompt
    found = [_line(path, number, line, parse) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ValueError(f"{path} holds no prompt")
    return found


def _line(path: Path, number: int, line: str, parse: Any) -> Prompt:
    try:
        prompt: Prompt = parse(line)
    except ValueError as error:
        raise ValueError(f"{path} line {number}: {error}") from error
    return prompt


def _parse_json(line: str) -> Prompt:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError('not an object; write {"prompt": "..."} or {"messages": [...]}')  # noqa: TRY004 - one kind of error for one bad line
    text, messages, limit = found.get("prompt"), found.get("messages"), found.get("max_tokens")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ValueError(f"max_tokens is {limit!r}, not a number above 0")
    if isinstance(messages, list) and messages and all(isinstance(each, dict) for each in messages):
        return Prompt(messages=tuple(messages), max_tokens=limit)
    if isinstance(text, str) and text:
        return Prompt(text, max_tokens=limit)
    raise ValueError('has neither "prompt", a text, nor "messages", a list of messages')
