"""The access log: one JSON object a line and request on standard output, so that usage can be billed and traced.

Standard error carries the process's own log. Lines are gathered and written once a second, for a system call a request
would cost as much as the routing. Holds names, numbers and times; prompts only where the administrator switched them
on. Never a key and never an answer.
"""

import os
import sys
from datetime import UTC, datetime
from typing import Any, Final

import orjson

LINES_LIMIT: Final = 512  # gathered before they are written without waiting for the second
PROMPT_FIELDS: Final = ("messages", "prompt")


class AccessLog:
    """Gathers lines; ``flush`` writes them."""

    def __init__(self, enabled: bool = True, prompts: bool = False, descriptor: int | None = None) -> None:
        self._enabled = enabled
        self._prompts = prompts
        self._descriptor = sys.stdout.fileno() if descriptor is None and enabled else descriptor
        self._lines: list[bytes] = []

    def write(self, line: dict[str, Any], fields: dict[str, Any] | None = None) -> None:
        """One request; ``fields`` are its body's, of which the prompt is taken if that is switched on."""
        if not self._enabled:
            return
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")} | line
        if self._prompts and fields:
            line |= {name: fields[name] for name in PROMPT_FIELDS if name in fields}
        self._lines.append(orjson.dumps(line, default=str))
        if len(self._lines) >= LINES_LIMIT:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered; called about once a second and at the end."""
        if not self._lines or self._descriptor is None:
            return
        data = memoryview(b"\n".join(self._lines) + b"\n")
        self._lines.clear()
        while data:
            data = data[os.write(self._descriptor, data) :]
