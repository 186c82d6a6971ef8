"""What training tells while it runs: JSON for the operator, Prometheus text for graphs, a file for later.

One board that the training thread writes and a small HTTP server reads, so that a poll is answered within a long step
too. Never computes anything about the model.
"""

import json
import logging
import os
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from tuneloop_core.constants import PROGRESS_PORT
from tuneloop_core.stages import Progress

from tuneloop_trainer.files import write_atomic

log = logging.getLogger("tuneloop")

PORT_ENV = "TUNELOOP_PROGRESS_PORT"
CURVE_POINTS = 64
Phase = Literal["Loading", "BaseEvaluation", "Training", "TunedEvaluation", "Saving", "Done"]


@dataclass
class Board:
    """The present state. ``costs`` are the phases' shares of the whole work, in forward passes over a token."""

    metrics_file: Path | None = None
    costs: dict[str, float] = field(default_factory=dict)
    _values: dict[str, Any] = field(default_factory=lambda: {"phase": "Loading"})
    _done_cost: float = 0.0
    _started_cost: float = 0.0
    _started: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self, phase: Phase, **values: Any) -> None:
        """Begin a phase."""
        with self._lock:
            if self._values["phase"] == "Loading":
                self._started = time.monotonic()
            self._done_cost = sum(cost for name, cost in self.costs.items() if _before(name, phase))
            self._values |= {"phase": phase, "share": 0.0, **values}
        log.info("%s", phase)

    def skip_to(self, share: float) -> None:
        """Say that a share of the present phase was done by an earlier pod, so that the ETA counts only the rest."""
        with self._lock:
            self._set_share(share)
            self._started_cost, self._started = self._done_now(), time.monotonic()

    def update(self, share: float | None = None, **values: Any) -> None:
        """Set values; ``share`` (0..1) is how much of the present phase is done."""
        with self._lock:
            self._values |= values
            if share is not None:
                self._set_share(share)

    def snapshot(self) -> Progress:
        """The state as the operator reads it."""
        with self._lock:
            values = {key: value for key, value in self._values.items() if key != "share"}
            return Progress(**values, percent=self._percent(), eta_seconds=self._eta())

    def record(self, **values: Any) -> None:
        """Append a line to the metrics file."""
        if self.metrics_file:
            with self.metrics_file.open("a") as stream:
                stream.write(json.dumps({"time": round(time.time(), 3), **values}) + "\n")

    def rewind(self, step: int) -> None:
        """Forget what was recorded after this step, and a half-written line: a killed pod came further than its
        checkpoint, and those steps are done again."""
        if self.metrics_file is None or not self.metrics_file.is_file():
            return
        kept = [line for line in self.metrics_file.read_text().splitlines() if _step_of(line) <= step]
        write_atomic(self.metrics_file, "".join(line + "\n" for line in kept).encode())

    def _set_share(self, share: float) -> None:
        self._values["share"] = min(1.0, share)

    def _done_now(self) -> float:
        cost = self.costs.get(self._values["phase"], 0.0)
        return self._done_cost + cost * float(self._values.get("share", 0.0))

    def _percent(self) -> int:
        total = sum(self.costs.values())
        if self._values["phase"] == "Done":
            return 100
        return min(99, int(100 * self._done_now() / total)) if total else 0

    def _eta(self) -> int | None:
        done = self._done_now() - self._started_cost
        left = sum(self.costs.values()) - self._done_now()
        if done <= 0 or self._values["phase"] == "Loading":
            return None
        return round((time.monotonic() - self._started) / done * left)


_ORDER = ("Loading", "BaseEvaluation", "Training", "Saving", "TunedEvaluation", "Done")


def _before(name: str, phase: str) -> bool:
    return _ORDER.index(name) < _ORDER.index(phase)


def _step_of(line: str) -> float:
    """The step of a recorded line; infinite for half a line."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


class ProgressServer:
    """Serves ``/progress``, ``/metrics`` and ``/healthz`` until closed."""

    def __init__(self, board: Board, port: int | None = None) -> None:
        wanted = int(os.environ.get(PORT_ENV, PROGRESS_PORT)) if port is None else port
        self._server = ThreadingHTTPServer(("", wanted), _handler(board))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="progress", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(board: Board) -> type[BaseHTTPRequestHandler]:
    metrics = _Metrics()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/progress":
                self._answer(200, "application/json", board.snapshot().model_dump_json(by_alias=True).encode())
            elif self.path == "/metrics":
                self._answer(200, "text/plain; version=0.0.4", metrics.text(board.snapshot()))
            elif self.path == "/healthz":
                self._answer(200, "text/plain", b"ok\n")
            else:
                self._answer(404, "text/plain", b"there is /progress, /metrics and /healthz\n")

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            """Polls are no news."""

    return Handler


class _Metrics:
    """The board as gauges."""

    NAMES = {
        "step": "Optimiser steps done",
        "total_steps": "Optimiser steps in all",
        "percent": "Share of the train stage that is done, 0 to 100",
        "loss": "Training loss of the last step, nats per trained token",
        "learning_rate": "Learning rate of the last step",
        "tokens": "Real tokens seen",
        "tokens_per_second": "Real tokens per second",
        "resumes": "Times that training went on from a checkpoint",
        "checkpoint_step": "Step of the last checkpoint",
    }

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._gauges = {
            name: Gauge(f"tuneloop_training_{name}", words, registry=self._registry)
            for name, words in self.NAMES.items()
        }
        self._lock = threading.Lock()

    def text(self, progress: Progress) -> bytes:
        """Prometheus text; a value that is not known yet is left out by being NaN."""
        with self._lock:
            for name, gauge in self._gauges.items():
                value = getattr(progress, name)
                gauge.set(float("nan") if value is None else value)
            return generate_latest(self._registry)


def thinned(curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most 64 points, evenly over the steps, the first and the last among them."""
    if len(curve) <= CURVE_POINTS:
        return curve
    last = len(curve) - 1
    return [curve[round(index * last / (CURVE_POINTS - 1))] for index in range(CURVE_POINTS)]
