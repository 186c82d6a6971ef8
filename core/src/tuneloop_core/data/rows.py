"""One dataset row in the shapes the trainer knows, and how each input format becomes one.

Never reads files (see ``files``) and never touches a tokenizer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")

ALPACA_PROMPT = "### Instruction:\n{instruction}\n\n### Response:\n"


class Format(StrEnum):
    """What a line of the dataset looks like; the values of ``spec.dataset.format``."""

    AUTO = "Auto"
    CHAT = "Chat"
    INSTRUCTION = "Instruction"
    COMPLETION = "Completion"


EXPECTED: dict[Format, str] = {
    Format.CHAT: '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    Format.INSTRUCTION: '{"instruction": "...", "input": "... (optional)", "output": "..."}',
    Format.COMPLETION: '{"prompt": "...", "completion": "..."} or {"text": "..."}',
}


class BadRowError(ValueError):
    """A row that cannot be trained on; the message says what was found."""


@dataclass(frozen=True)
class ChatRow:
    """A conversation; the assistant's messages are trained."""

    messages: tuple[tuple[str, str], ...]  # (role, content)

    def as_json(self) -> dict[str, Any]:
        """The normalised line."""
        return {"messages": self.as_messages()}

    def as_messages(self) -> list[dict[str, str]]:
        """The messages as chat templates take them."""
        return [{"role": role, "content": content} for role, content in self.messages]

    def group(self) -> str:
        """Rows of one group never lie on both sides of the split: those that ask the same."""
        return "\x00".join(content for role, content in self.messages if role == "user")


@dataclass(frozen=True)
class CompletionRow:
    """A prompt and what should follow it; only the completion is trained."""

    prompt: str
    completion: str

    def as_json(self) -> dict[str, Any]:
        """The normalised line."""
        return {"prompt": self.prompt, "completion": self.completion}

    def group(self) -> str:
        """Rows of one group never lie on both sides of the split: those with one prompt."""
        return self.prompt


@dataclass(frozen=True)
class TextRow:
    """Plain text, trained as a whole."""

    text: str

    def as_json(self) -> dict[str, Any]:
        """The normalised line."""
        return {"text": self.text}

    def group(self) -> str:
        """Only an equal text is of the same group."""
        return self.text


Row = ChatRow | CompletionRow | TextRow


def detect(record: dict[str, Any]) -> Format:
    """The format of the first row, by its columns; raises ``BadRowError`` naming what was found."""
    keys = set(record)
    if "messages" in keys:
        return Format.CHAT
    if {"instruction", "output"} <= keys:
        return Format.INSTRUCTION
    if {"prompt", "completion"} <= keys or "text" in keys:
        return Format.COMPLETION
    raise BadRowError(f"columns {_names(keys)} match no format{_hint(keys)}")


def parse(record: dict[str, Any], format_: Format, has_template: bool) -> Row:
    """Turn one record into a row; raises ``BadRowError``. Instructions become chat where the model has a template."""
    return _PARSERS[format_](record, has_template)


def _parse_chat(record: dict[str, Any], _has_template: bool) -> Row:
    messages = record.get("messages")
    if not isinstance(messages, list):
        raise BadRowError(f"{_lacks(record, 'messages')}, a list of messages")
    if not messages:
        raise BadRowError("messages is empty")
    parsed = tuple(_parse_message(index, message) for index, message in enumerate(messages))
    if not any(role == "assistant" for role, _ in parsed):
        raise BadRowError("no message has the role assistant, so there is nothing to train on")
    return ChatRow(parsed)


def _parse_message(index: int, message: Any) -> tuple[str, str]:
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        raise BadRowError(f"{where} is {_kind(message)}, not an object with role and content")
    if extra := set(message) - {"role", "content"}:
        raise BadRowError(f"{where} has {_names(extra)}; only role and content are trained on: remove the rest")
    role = message.get("role")
    if role not in ROLES:
        raise BadRowError(f"{where}.role is {role!r}, not one of {', '.join(ROLES)}")
    content = _text(message, "content", where + ".")
    if role == "assistant" and not content.strip():
        raise BadRowError(f"{where}.content is empty: an assistant's message is what is trained")
    return role, content


def _parse_instruction(record: dict[str, Any], has_template: bool) -> Row:
    instruction = _text(record, "instruction")
    output = _filled(record, "output")
    extra = _text(record, "input") if record.get("input") is not None else ""
    question = f"{instruction}\n\n{extra}" if extra else instruction
    if has_template:
        return ChatRow((("user", question), ("assistant", output)))
    return CompletionRow(ALPACA_PROMPT.format(instruction=question), output)


def _parse_completion(record: dict[str, Any], _has_template: bool) -> Row:
    if "text" in record and "prompt" not in record:
        return TextRow(_filled(record, "text"))
    return CompletionRow(_text(record, "prompt"), _filled(record, "completion"))


_PARSERS: dict[Format, Callable[[dict[str, Any], bool], Row]] = {
    Format.CHAT: _parse_chat,
    Format.INSTRUCTION: _parse_instruction,
    Format.COMPLETION: _parse_completion,
}


def _text(record: dict[str, Any], key: str, where: str = "") -> str:
    if key not in record:
        raise BadRowError(_lacks(record, where + key))
    value = record[key]
    if not isinstance(value, str):
        raise BadRowError(f"{where}{key} is {_kind(value)}, not a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRowError(f"{where}{key} holds half a surrogate pair at character {error.start + 1}") from None
    return value


def _filled(record: dict[str, Any], key: str) -> str:
    value = _text(record, key)
    if not value.strip():
        raise BadRowError(f"{key} is empty")
    return value


def _lacks(record: dict[str, Any], key: str) -> str:
    return f"has {_names(set(record))} but no {key}"


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def _names(keys: set[str]) -> str:
    shown = sorted(keys)[:6]
    return ", ".join(shown) + (", ..." if len(keys) > len(shown) else "") if keys else "no columns"


def _hint(keys: set[str]) -> str:
    if "conversations" in keys:
        return (
            " (ShareGPT: rename conversations to messages, from to role, value to content, human to user and "
            "gpt to assistant)"
        )
    return ""
