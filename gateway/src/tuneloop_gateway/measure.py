"""What users feel, measured where they feel it: TTFT, TPOT, ITL and whole duration of every request.

Definitions (those of vLLM's and most other benchmarks): TTFT is from the request's first byte at the gateway to the
first event with output; ITL is each gap between events with output, 0 for those that came in one piece; TPOT is
(whole duration − TTFT) / (n − 1) with n the answer tokens by the server's own usage; the duration is to the last byte.
Duration and TPOT are of answers that succeeded: a quick refusal must not make a slow service look fast. TTFT and ITL
are counted as they are felt, so a stream that broke later, or that its client left, is in them; a refusal has neither.
TTFT, TPOT and ITL are of streamed answers only, for the others have no first token to wait for. Labels are names from
the routing table only, never what a client sent, so their number is bounded. Never logs.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

from tuneloop_gateway.histogram import Histogram
from tuneloop_gateway.sse import Usage

SUCCESS: Final = "200"

# OpenTelemetry's recommended bounds (semantic-conventions-genai), with more between them so that percentiles that
# are promised in milliseconds can be read off; seconds.
TTFT_BOUNDS: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.5,
    5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0,
)  # fmt: skip
TOKEN_BOUNDS: Final = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
    0.75, 1.0, 2.5,
)  # fmt: skip
DURATION_BOUNDS: Final = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68,
)  # fmt: skip


DeploymentKey = tuple[str, str]  # namespace, name
Version = tuple[str, str, str, str]  # namespace, deployment, model, engine name


FullVersion = tuple[str, str, str, str, str]  # and the revision


@dataclass(frozen=True)
class Labels:
    """Whose series it is; ``operation`` by OpenTelemetry's names: chat or text_completion."""

    namespace: str
    deployment: str
    model: str
    operation: str
    engine_name: str = ""  # the version that answered
    revision: str = ""  # of the pods that answered, where that matters


@dataclass(frozen=True)
class Objective:
    """What ``spec.slo`` promises for each streamed request, seconds."""

    ttft: float = math.inf
    tpot: float = math.inf


@dataclass
class Series:
    """Everything counted under one set of labels since the start."""

    ttft: Histogram = field(default_factory=lambda: Histogram(TTFT_BOUNDS))
    tpot: Histogram = field(default_factory=lambda: Histogram(TOKEN_BOUNDS))
    itl: Histogram = field(default_factory=lambda: Histogram(TOKEN_BOUNDS))
    duration: Histogram = field(default_factory=lambda: Histogram(DURATION_BOUNDS))
    codes: dict[str, int] = field(default_factory=dict)
    ongoing: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    errors: int = 0
    slo_met: int = 0
    slo_missed: int = 0

    def add(self, other: "Series") -> None:
        """Add what another one counted; what runs under it stays its own."""
        for mine, its in ((self.ttft, other.ttft), (self.tpot, other.tpot), (self.itl, other.itl)):
            mine.add(its)
        self.duration.add(other.duration)
        for code, count in other.codes.items():
            self.codes[code] = self.codes.get(code, 0) + count
        for name in ("prompt_tokens", "completion_tokens", "errors", "slo_met", "slo_missed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Meter:
    """One request's stopwatch. Times are seconds of one monotonic clock, given by the caller."""

    __slots__ = ("_first", "_gap", "_identity", "_last", "_objective", "_received", "_series", "usage")

    def __init__(
        self, series: Series, received: float, objective: Objective | None = None, identity: bytes = b""
    ) -> None:
        self._objective = objective
        self._identity = identity  # the request's id, for exemplars
        self._gap = 0.0  # the longest between two outputs
        self._series = series
        self._received = received
        self._first = 0.0
        self._last = 0.0
        self.usage: Usage | None = None
        series.ongoing += 1

    @property
    def ttft(self) -> float | None:
        """Seconds to the first output, of a stream that had one."""
        return round(self._first - self._received, 6) if self._first else None

    def output(self, events: int, now: float) -> None:
        """``events`` events with output came in one piece."""
        if self._first:
            gap = now - self._last
            self._series.itl.observe(gap)
            if gap > self._gap:  # noqa: PLR1730 - max() would cost a call a chunk
                self._gap = gap
        else:
            self._first = now
            self._series.ttft.observe(now - self._received)
        self._last = now
        if events > 1:
            self._series.itl.observe(0.0, events - 1)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While it waits for a replica it is queued, not ongoing."""
        self._series.ongoing -= 1
        try:
            yield
        finally:
            self._series.ongoing += 1

    def end(self, code: str, failed: bool, now: float) -> None:
        """The request ended; ``code`` is the status, or 499 where the client left first."""
        series = self._series
        series.ongoing -= 1
        series.codes[code] = series.codes.get(code, 0) + 1
        series.errors += failed
        if code == SUCCESS and not failed:
            series.duration.observe(now - self._received)
            series.duration.mark(now - self._received, self._identity)
        if self._first:
            series.ttft.mark(self._first - self._received, self._identity)
        if self._gap:
            series.itl.mark(self._gap, self._identity)
        tpot = 0.0
        if self.usage is not None:
            series.prompt_tokens += self.usage.prompt
            series.completion_tokens += self.usage.completion
            if self._first and self.usage.completion > 1 and not failed:
                tpot = (now - self._first) / (self.usage.completion - 1)
                series.tpot.observe(tpot)
                series.tpot.mark(tpot, self._identity)
        if self._objective is not None and (failed or (self._first and code == SUCCESS)):
            self._judge(self._objective, tpot, failed)

    def _judge(self, objective: Objective, tpot: float, failed: bool) -> None:
        met = not failed and self._first - self._received <= objective.ttft and tpot <= objective.tpot
        self._series.slo_met += met
        self._series.slo_missed += not met


class Waiting(Protocol):
    """A queue of requests that wait for a replica."""

    def __len__(self) -> int:
        """How many wait."""

    def waited(self, now: float) -> float:
        """Seconds that the first has waited."""


class Measures:
    """All series of this process."""

    def __init__(self, instance: str, started: str) -> None:
        self.instance = instance
        self.started = started
        self.series: dict[Labels, Series] = {}
        self.past: dict[DeploymentKey, Series] = {}  # (namespace, deployment) -> of its names and versions that went
        self.deployments: frozenset[DeploymentKey] = frozenset()  # of the routing table
        self.queues: Mapping[DeploymentKey, Waiting] = {}  # those with anybody in them
        self.held: dict[tuple[DeploymentKey, str], int] = {}  # (deployment, how it ended) -> requests that were held
        self.scores: dict[FullVersion, list[int]] = {}  # [good, bad]
        self.rejected: dict[tuple[str, str], int] = {}  # (status, reason) -> requests that met no route
        self.upstream_failures: dict[str, int] = {}  # kind -> count

    def meter(
        self, labels: Labels, received: float, objective: Objective | None = None, identity: bytes = b""
    ) -> Meter:
        """Start to measure a request that has a route."""
        series = self.series.get(labels)
        if series is None:
            series = self.series[labels] = Series()
        return Meter(series, received, objective, identity)

    def feedback(self, version: FullVersion, *, good: bool) -> None:
        """Count what a user thought of an answer of this version."""
        self.scores.setdefault(version, [0, 0])[0 if good else 1] += 1

    def judged(self) -> dict[DeploymentKey, tuple[int, int]]:
        """(met, missed) of each deployment whose requests were judged by an objective, gone versions included."""
        every = [((labels.namespace, labels.deployment), series) for labels, series in self.series.items()]
        found: dict[DeploymentKey, tuple[int, int]] = {}
        for key, series in (*every, *self.past.items()):
            met, missed = found.get(key, (0, 0))
            found[key] = met + series.slo_met, missed + series.slo_missed
        return {key: counts for key, counts in found.items() if any(counts)}

    def reject(self, status: int, reason: str) -> None:
        """Count a request that was refused before it had a route."""
        key = (str(status), reason)
        self.rejected[key] = self.rejected.get(key, 0) + 1

    def upstream_failed(self, kind: str) -> None:
        """Count a server pod that failed: connect, broken, silent or stale."""
        self.upstream_failures[kind] = self.upstream_failures.get(kind, 0) + 1

    def hold_ended(self, deployment: DeploymentKey, outcome: str) -> None:
        """Count a request that was held for want of a replica, or would have been."""
        self.held[deployment, outcome] = self.held.get((deployment, outcome), 0) + 1

    def forget_all_but(self, known: set[Version]) -> None:
        """Drop the idle series of names and versions that no longer exist.

        What they counted goes to ``past`` while their deployment lives, so that its totals never fall: a counter that
        falls is taken for a restart.
        """
        self.scores = {version: counts for version, counts in self.scores.items() if version[:4] in known}
        living = self.deployments = frozenset(version[:2] for version in known)
        for labels in [labels for labels, series in self.series.items() if not series.ongoing]:
            deployment = labels.namespace, labels.deployment
            if (*deployment, labels.model, labels.engine_name) in known:
                continue
            gone = self.series.pop(labels)
            if deployment in living:
                self.past.setdefault(deployment, Series()).add(gone)
        self.past = {deployment: series for deployment, series in self.past.items() if deployment in living}
        self.held = {key: count for key, count in self.held.items() if key[0] in living}
