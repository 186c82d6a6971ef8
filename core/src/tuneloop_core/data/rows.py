"""One dataset row in the shapes the trainer knows, and how each input format becomes one.

Never reads files (see ``files``) and never touches a tokenizer. ``as_json`` and ``read_row`` are the two ends of the
normalised files between check and train.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tuneloop_core.data.fields import BadRowError, class_name, filled, flag, names, text
from tuneloop_core.data.messages import ROLES, Message, Tool, parse_messages, parse_tools, says
from tuneloop_core.data.pairs import Turns, parse_answers

ALPACA_PROMPT = "### Instruction:\n{instruction}\n\n### Response:\n"


class Format(StrEnum):
    """What a line of the dataset looks like; the values of ``spec.dataset.format``."""

    AUTO = "Auto"
    CHAT = "Chat"
    INSTRUCTION = "Instruction"
    COMPLETION = "Completion"
    TEXT = "Text"
    PREFERENCE = "Preference"
    UNPAIRED_PREFERENCE = "UnpairedPreference"
    CLASSIFICATION = "Classification"


EXPECTED: dict[Format, str] = {
    Format.CHAT: '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    Format.INSTRUCTION: '{"instruction": "...", "input": "... (optional)", "output": "..."}',
    Format.COMPLETION: '{"prompt": "...", "completion": "..."}',
    Format.TEXT: '{"text": "..."}',
    Format.PREFERENCE: '{"prompt": "...", "chosen": "...", "rejected": "..."}',
    Format.UNPAIRED_PREFERENCE: '{"prompt": "...", "completion": "...", "label": true}',
    Format.CLASSIFICATION: '{"text": "...", "label": "..."}',
}


@dataclass(frozen=True)
class ChatRow:
    """A conversation; the assistant's messages are trained."""

    messages: tuple[tuple[str, str], ...]  # (role, content)
    extras: dict[int, Message] = field(default_factory=dict)  # by place: tool_calls, tool_call_id, name
    tools: list[Tool] = field(default_factory=list)

    @classmethod
    def of(cls, messages: list[Message], tools: list[Tool]) -> "ChatRow":
        """From messages as ``messages.parse_messages`` gives them."""
        extras = {index: _extras(message) for index, message in enumerate(messages) if len(message) > 2}
        return cls(tuple((message["role"], message["content"]) for message in messages), extras, tools)

    def as_json(self) -> dict[str, Any]:
        """The normalised line."""
        return {"messages": self.as_messages()} | _with(self.tools)

    def as_messages(self) -> list[Message]:
        """The messages as chat templates take them."""
        return [
            {"role": role, "content": content, **self.extras.get(index, {})}
            for index, (role, content) in enumerate(self.messages)
        ]

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


@dataclass(frozen=True)
class PreferenceRow:
    """A prompt and two answers of which the first is liked better; all strings, or all lists of messages."""

    prompt: Turns
    chosen: Turns
    rejected: Turns
    tools: list[Tool] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The normalised line."""
        return {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected} | _with(self.tools)

    def group(self) -> str:
        """Rows of one group never lie on both sides of the split: those that ask the same."""
        return self.prompt if isinstance(self.prompt, str) else says(self.prompt)


@dataclass(frozen=True)
class UnpairedRow:
    """A prompt, one answer, and whether it was liked; both strings, or both lists of messages."""

    prompt: Turns
    completion: Turns
    label: bool
    tools: list[Tool] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The normalised line."""
        return {"prompt": self.prompt, "completion": self.completion, "label": self.label} | _with(self.tools)

    def group(self) -> str:
        """Rows of one group never lie on both sides of the split: those that ask the same."""
        return self.prompt if isinstance(self.prompt, str) else says(self.prompt)


@dataclass(frozen=True)
class ClassRow:
    """A text and its class: by name as the user wrote it, by number (its place in labels.json) in a normalised row."""

    text: str
    label: str | int

    def as_json(self) -> dict[str, Any]:
        """The line; normalised once the label is a number."""
        return {"text": self.text, "label": self.label}

    def group(self) -> str:
        """Only an equal text is of the same group."""
        return self.text


Row = ChatRow | CompletionRow | TextRow | PreferenceRow | UnpairedRow | ClassRow


def read_row(record: dict[str, Any]) -> Row:
    """A normalised line, as check wrote it, turned back into its row."""
    tools = record.get("tools", [])
    if "messages" in record:
        return ChatRow.of(record["messages"], tools)
    if "chosen" in record:
        return PreferenceRow(record["prompt"], record["chosen"], record["rejected"], tools)
    if "completion" in record and "label" in record:
        return UnpairedRow(record["prompt"], record["completion"], record["label"], tools)
    if "completion" in record:
        return CompletionRow(record["prompt"], record["completion"])
    return ClassRow(record["text"], record["label"]) if "label" in record else TextRow(record["text"])


# ---- which format --------------------------------------------------------------------------------------------------

# In this order: the columns that say most come first. A row may fit several, such as a text with a label.
_COLUMNS: tuple[tuple[Format, frozenset[str]], ...] = (
    (Format.PREFERENCE, frozenset({"chosen", "rejected"})),
    (Format.CHAT, frozenset({"messages"})),
    (Format.INSTRUCTION, frozenset({"instruction", "output"})),
    (Format.UNPAIRED_PREFERENCE, frozenset({"prompt", "completion", "label"})),
    (Format.COMPLETION, frozenset({"prompt", "completion"})),
    (Format.CLASSIFICATION, frozenset({"text", "label"})),
    (Format.TEXT, frozenset({"text"})),
)


def detect(record: dict[str, Any], wanted: Collection[Format] = ()) -> Format:
    """The format of the first row, by its columns; raises ``BadRowError`` naming what was found.

    ``wanted`` are the formats that the job's objective learns from: where columns allow several, one of these is it.
    """
    keys = set(record)
    fitting = [format_ for format_, columns in _COLUMNS if columns <= keys]
    if not fitting:
        raise BadRowError(f"columns {names(keys)} match no format{_hint(keys)}")
    return next((format_ for format_ in fitting if format_ in wanted), fitting[0])


def parse(record: dict[str, Any], format_: Format, has_template: bool) -> Row:
    """Turn one record into a row; raises ``BadRowError``. Instructions become chat where the model has a template."""
    return _PARSERS[format_](record, has_template)


def _parse_chat(record: dict[str, Any], _has_template: bool) -> Row:
    messages = parse_messages(record, "messages")
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRowError("no message has the role assistant, so there is nothing to train on")
    return ChatRow.of(messages, parse_tools(record))


def _parse_instruction(record: dict[str, Any], has_template: bool) -> Row:
    instruction = text(record, "instruction")
    output = filled(record, "output")
    extra = text(record, "input") if record.get("input") is not None else ""
    question = f"{instruction}\n\n{extra}" if extra else instruction
    if has_template:
        return ChatRow((("user", question), ("assistant", output)))
    return CompletionRow(ALPACA_PROMPT.format(instruction=question), output)


def _parse_completion(record: dict[str, Any], has_template: bool) -> Row:
    if "text" in record and "prompt" not in record:
        return _parse_text(record, has_template)
    return CompletionRow(text(record, "prompt"), filled(record, "completion"))


def _parse_text(record: dict[str, Any], _has_template: bool) -> Row:
    return TextRow(filled(record, "text"))


def _parse_preference(record: dict[str, Any], _has_template: bool) -> Row:
    prompt, (chosen, rejected) = parse_answers(record, ("chosen", "rejected"))
    if chosen == rejected:
        raise BadRowError("chosen and rejected are equal, so that nothing is preferred")
    return PreferenceRow(prompt, chosen, rejected, parse_tools(record))


def _parse_unpaired(record: dict[str, Any], _has_template: bool) -> Row:
    prompt, (completion,) = parse_answers(record, ("completion",))
    return UnpairedRow(prompt, completion, flag(record, "label"), parse_tools(record))


def _parse_class(record: dict[str, Any], _has_template: bool) -> Row:
    return ClassRow(filled(record, "text"), class_name(record, "label"))


_PARSERS: dict[Format, Callable[[dict[str, Any], bool], Row]] = {
    Format.CHAT: _parse_chat,
    Format.INSTRUCTION: _parse_instruction,
    Format.COMPLETION: _parse_completion,
    Format.TEXT: _parse_text,
    Format.PREFERENCE: _parse_preference,
    Format.UNPAIRED_PREFERENCE: _parse_unpaired,
    Format.CLASSIFICATION: _parse_class,
}


def _extras(message: Message) -> Message:
    return {key: value for key, value in message.items() if key not in ("role", "content")}


def _with(tools: list[Tool]) -> dict[str, Any]:
    return {"tools": tools} if tools else {}


def _hint(keys: set[str]) -> str:
    if "conversations" in keys:
        return (
            " (ShareGPT: rename conversations to messages, from to role, value to content, human to user and "
            "gpt to assistant; or let dataset.columns do it: {messages: conversations, role: from, content: value})"
        )
    return ""


__all__ = [
    "EXPECTED",
    "ROLES",
    "BadRowError",
    "ChatRow",
    "ClassRow",
    "CompletionRow",
    "Format",
    "PreferenceRow",
    "Row",
    "TextRow",
    "UnpairedRow",
    "detect",
    "parse",
    "read_row",
]
