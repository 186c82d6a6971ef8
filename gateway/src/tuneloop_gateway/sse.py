"""Reads a stream of server-sent events as cheaply as it can: which events carry output, and what the usage was.

Events pass byte for byte; only the usage event, which the gateway asked for on its own account, can be taken out.
JSON is decoded for that one event only. Everything else is found by searching bytes, which is exact: inside a JSON
string every quotation mark is preceded by a backslash, so ``"content":"x`` can only be a key with a non-empty string.
Never changes an event and never waits for the next one; an event cut in two is held until its second half comes.
"""

import re
from dataclasses import dataclass
from typing import Final

import orjson

# A key whose string value is output that a user sees or a tool receives, and the first byte of a non-empty value.
OUTPUT: Final = re.compile(rb'("(?:content|text|reasoning_content|reasoning|refusal|arguments|name)"\s*:\s*")[^"]')
USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')
END: Final = b"\n\n"
CRLF_END: Final = b"\r\n\r\n"
QUOTE: Final = ord('"')
HELD_LIMIT: Final = 1024 * 1024  # bytes; an event longer than this passes unread


@dataclass(frozen=True)
class Usage:
    """Tokens as the server counted them."""

    prompt: int
    completion: int


class EventReader:
    """One answer's stream. ``feed`` gives the bytes to pass on and how many of their events carry output."""

    def __init__(self, drop_usage: bool) -> None:
        self.usage: Usage | None = None
        self._drop = drop_usage
        self._held = b""
        self._marker = b'"content":"'  # what OUTPUT found last; the same server words all its events alike
        self._opaque = False

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """Take what the server sent; returns (bytes for the client, number of events with output)."""
        if self._held:
            data = self._held + data
            self._held = b""
        if data.find(END) == len(data) - 2 >= 0:  # one event, whole: what nearly every read is
            return self._event(data)
        if self._opaque:
            return data, 0
        return self._several(data)

    def rest(self) -> bytes:
        """What was held when the stream ended: an unfinished event, passed as it is."""
        held, self._held = self._held, b""
        return held

    def _event(self, event: bytes) -> tuple[bytes, int]:
        marker = self._marker
        at = event.find(marker)
        output = 1 if at >= 0 and event[at + len(marker)] != QUOTE else self._search(event)
        if b'"usage"' in event and self._is_usage(event):
            return b"", 0
        return event, output

    def _search(self, event: bytes) -> int:
        found = OUTPUT.search(event)
        if found is None:
            return 0
        self._marker = found.group(1)
        return 1

    def _several(self, data: bytes) -> tuple[bytes, int]:
        passed: list[bytes] = []
        outputs = start = 0
        while (end := _end_of_event(data, start)) > 0:
            event, output = self._event(data[start:end])
            passed.append(event)
            outputs += output
            start = end
        self._hold(data[start:], passed)
        return b"".join(passed), outputs

    def _hold(self, tail: bytes, passed: list[bytes]) -> None:
        if len(tail) > HELD_LIMIT:
            self._opaque = True
            passed.append(tail)
        else:
            self._held = tail

    def _is_usage(self, event: bytes) -> bool:
        """Note the usage; True if the event is the extra one and the client did not ask for it."""
        if not USAGE.search(event):
            return False
        found = _payload(event)
        usage = usage_of(found)
        if usage is None:
            return False
        self.usage = usage
        return self._drop and isinstance(found, dict) and found.get("choices") == []


def usage_of(answer: object) -> Usage | None:
    """The usage of a decoded answer or event, if it has one."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(usage, dict):
        return None
    prompt = usage.get("prompt_tokens")
    completion = usage.get("completion_tokens") or 0  # null where nothing was written
    if not isinstance(prompt, int) or not isinstance(completion, int):
        return None
    return Usage(prompt, completion)


def _payload(event: bytes) -> object:
    lines = [line[5:] for line in event.splitlines() if line.startswith(b"data:")]
    try:
        return orjson.loads(b"\n".join(lines))
    except orjson.JSONDecodeError:
        return None


def _end_of_event(data: bytes, start: int) -> int:
    """Index after the first event that ends at or after ``start``, or -1."""
    plain, crlf = data.find(END, start), data.find(CRLF_END, start)
    if crlf >= 0 and (plain < 0 or crlf < plain):
        return crlf + len(CRLF_END)
    return plain + len(END) if plain >= 0 else -1
