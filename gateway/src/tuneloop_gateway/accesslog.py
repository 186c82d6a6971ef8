"""The access log: one JSON object a line and request on standard output, so that usage can be billed and traced.

Standard error carries the process's own log. Lines are gathered and handed over once a second, for a system call a
request would cost as much as the routing. A thread writes them: whoever reads the pipe may be slow, and then lines are
dropped and counted, and no request waits. Holds names, numbers and times; prompts only where the administrator
switched them on. Never a key and never an answer.
"""

import logging
import os
import select
import sys
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Any, Final

import orjson
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

log = logging.getLogger(__name__)

LINES_LIMIT: Final = 512  # gathered before they are handed over without waiting for the second
BYTES_LIMIT: Final = 8 * 1024 * 1024  # not yet written; about 20,000 lines without prompts
END_SECONDS: Final = 2.0  # that the end of the process waits for its last lines
PROMPT_FIELDS: Final = ("messages", "prompt")

Batch = tuple[bytes, int]  # lines as one text, and how many they are


class AccessLog(Collector):
    """Gathers lines; ``flush`` hands them to the thread that writes them. ``write`` and ``flush`` never wait."""

    def __init__(
        self, enabled: bool = True, prompts: bool = False, descriptor: int | None = None, limit: int = BYTES_LIMIT
    ) -> None:
        self._enabled = enabled
        self._prompts = prompts
        self._limit = limit
        self._lines: list[bytes] = []
        self._taken = 0  # bytes of all lines that were not dropped
        self._writer = _Writer(sys.stdout.fileno() if descriptor is None else descriptor) if enabled else None
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Lines that nobody will read: there was no room for them, or they could not be written."""
        return self._dropped + (self._writer.lost if self._writer is not None else 0)

    def write(self, line: dict[str, Any], fields: dict[str, Any] | None = None) -> None:
        """One request; ``fields`` are its body's, of which the prompt is taken if that is switched on."""
        if self._writer is None:
            return
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")} | line
        if self._prompts and fields:
            line |= {name: fields[name] for name in PROMPT_FIELDS if name in fields}
        text = orjson.dumps(line, default=str, option=orjson.OPT_APPEND_NEWLINE)
        if self._taken - self._writer.done + len(text) > self._limit:
            self._dropped += 1
            return
        self._taken += len(text)
        self._lines.append(text)
        if len(self._lines) >= LINES_LIMIT:
            self.flush()

    def flush(self) -> None:
        """Hand over what was gathered; called about once a second."""
        if self._lines and self._writer is not None:
            self._writer.take((b"".join(self._lines), len(self._lines)))
            self._lines.clear()

    def finish(self, seconds: float = END_SECONDS) -> bool:
        """Wait until everything is written, so long at most; whether it is."""
        self.flush()
        return self._writer is None or self._writer.wait(seconds)

    def collect(self) -> Iterable[Metric]:
        """What was dropped."""
        text = "Lines of the access log that were dropped because standard output was not read, or is closed."
        yield CounterMetricFamily("tuneloop_gateway_access_log_dropped_lines", text, value=self.dropped)


class _Writer:
    """The thread. ``done`` and ``lost`` are changed by it alone, so they need no lock."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._batches: SimpleQueue[Batch | threading.Event] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self.done = 0  # bytes that were written or lost
        self.lost = 0  # lines

    def take(self, batch: Batch | threading.Event) -> None:
        """Write it after all before it; the first one starts the thread, which never keeps a process from ending."""
        self._batches.put(batch)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
            self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Whether everything taken so far was written in time."""
        if self._thread is None:
            return True
        reached = threading.Event()
        self.take(reached)
        return reached.wait(seconds)

    def _run(self) -> None:
        while True:
            batch = self._batches.get()
            if isinstance(batch, threading.Event):
                batch.set()
            else:
                self._write(*batch)

    def _write(self, text: bytes, lines: int) -> None:
        try:
            self._write_all(memoryview(text))
        except OSError as error:
            if not self.lost:
                log.warning("the access log cannot be written; its lines are dropped", extra={"error": str(error)})
            self.lost += lines
        self.done += len(text)

    def _write_all(self, data: memoryview) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # whoever shares the pipe may have set it so
                select.select([], [self._descriptor], [], 1.0)
