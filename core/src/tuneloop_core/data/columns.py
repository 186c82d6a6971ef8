"""``dataset.columns``: our names for what the user's file calls otherwise. Never looks into a value but messages'."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MESSAGE_KEYS = ("role", "content")
CONVERSATIONS = ("messages", "prompt", "completion", "chosen", "rejected")
KNOWN = frozenset({*CONVERSATIONS, "tools", "instruction", "input", "output", "text", "label"})
SPOKEN = {"human": "user", "gpt": "assistant"}  # ShareGPT's roles


@dataclass
class Columns:
    """Our name to the file's; ``role`` and ``content`` are looked for within messages."""

    names: Mapping[str, str] = field(default_factory=dict)
    unseen: set[str] = field(init=False)  # mapped columns that no record had so far

    def __post_init__(self) -> None:
        self._inner = {ours: theirs for ours, theirs in self.names.items() if ours in MESSAGE_KEYS}
        self._outer = {ours: theirs for ours, theirs in self.names.items() if ours not in MESSAGE_KEYS}
        self._taken = set(self._outer) | set(self._outer.values())
        self.unseen = set(self._outer.values())

    @property
    def wanted(self) -> frozenset[str]:
        """The columns of a file that any format reads."""
        return KNOWN | self._taken

    def rename(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record under our names; a column of the file that a mapped name hides is left out."""
        if not self.names:
            return record
        self.unseen.difference_update(record)
        renamed = {key: value for key, value in record.items() if key not in self._taken}
        renamed |= {ours: record[theirs] for ours, theirs in self._outer.items() if theirs in record}
        if self._inner:
            renamed |= {key: self._messages(renamed[key]) for key in CONVERSATIONS if key in renamed}
        return renamed

    def missing(self, record: dict[str, Any]) -> str:
        """Words for the mapped columns that a bad record lacks, in brackets; empty where it lacks none."""
        lacking = [f"{ours} to {theirs}" for ours, theirs in self._outer.items() if theirs not in record]
        return f" (dataset.columns maps {', '.join(lacking)}, which the row does not have)" if lacking else ""

    def _messages(self, value: Any) -> Any:
        return [self._message(message) for message in value] if isinstance(value, list) else value

    def _message(self, message: Any) -> Any:
        if not isinstance(message, dict):
            return message
        taken = set(self._inner.values())
        renamed = {key: value for key, value in message.items() if key not in taken}
        renamed |= {ours: message[theirs] for ours, theirs in self._inner.items() if theirs in message}
        if isinstance(role := renamed.get("role"), str):
            renamed["role"] = SPOKEN.get(role, role)
        return renamed
