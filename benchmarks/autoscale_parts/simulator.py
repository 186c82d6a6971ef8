"""Plays a load trace through the operator's own decision, second by second, with replicas that take time to start.

A replica runs ``slots`` requests at once, each ``work`` seconds long; what it cannot run waits inside of it, as in
vLLM; without a replica requests are held at the gateway. No chance anywhere: a run is the same every time. It shows
what the decision does, never how fast a model is.
"""

from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from autoscale_parts.traces import Trace

from tuneloop_core.api.scaling import Scaling, ServiceLevel
from tuneloop_operator.policy.autoscale import Decision, begin, decide
from tuneloop_operator.policy.wishes import EngineSample, Felt, History, Sample

WINDOW = 60
MIDNIGHT = datetime(2026, 11, 23, tzinfo=UTC)


@dataclass(frozen=True)
class Machine:
    """One replica's nature."""

    slots: int = 16
    work: float = 4.0  # seconds of a request that runs
    cold_start: int = 60  # seconds from wanted to ready


@dataclass(frozen=True)
class Row:
    """One second."""

    second: int
    load: int  # in progress or held
    held: int
    waiting: int  # inside of replicas
    wanted: int
    ready: int
    reason: str


@dataclass
class Request:
    """One request on its way."""

    came: int
    left: float  # seconds of work
    first: int | None = None  # when it began to run


@dataclass
class World:
    """Replicas and requests."""

    machine: Machine
    starting: list[int] = field(default_factory=list)  # seconds at which they become ready
    ready: int = 0
    changed: int = 0  # when the number of ready ones last changed
    requests: list[Request] = field(default_factory=list)
    first_tokens: deque[tuple[int, float]] = field(default_factory=deque)  # (when, seconds waited)
    owed: float = 0.0

    def scale(self, second: int, wanted: int) -> None:
        """Begin to start what is missing, drop what is too many: those that start first."""
        while self.ready + len(self.starting) < wanted:
            self.starting.append(second + self.machine.cold_start)
        while self.starting and self.ready + len(self.starting) > wanted:
            self.starting.pop()
        if self.ready > wanted:
            self.ready, self.changed = wanted, second

    def advance(self, second: int, rate: float) -> tuple[int, int]:
        """One second passes; how many requests there were in it, and how many of them ended."""
        self.owed += rate
        come, self.owed = int(self.owed), self.owed % 1
        self.requests += [Request(second, self.machine.work) for _ in range(come)]
        due = [at for at in self.starting if at <= second]
        if due:
            self.starting = [at for at in self.starting if at > second]
            self.ready, self.changed = self.ready + len(due), second
        for request in self.requests[: self.capacity]:
            if request.first is None:
                request.first = second
                self.first_tokens.append((second, 0.2 + second - request.came))
            request.left -= 1.0
        before = len(self.requests)
        self.requests = [request for request in self.requests if request.left > 0]
        return before, before - len(self.requests)

    @property
    def capacity(self) -> int:
        """Requests that run at once."""
        return self.ready * self.machine.slots

    def felt(self, second: int) -> Felt:
        """TTFT since the replicas last changed, within the last minute."""
        since = max(second - WINDOW, self.changed + 15)
        while self.first_tokens and self.first_tokens[0][0] < second - WINDOW:
            self.first_tokens.popleft()
        values = sorted(waited for at, waited in self.first_tokens if at >= since)
        return Felt(len(values), values[int(0.95 * (len(values) - 1))] if values else None)


def simulate(
    trace: Trace, scaling: Scaling, slo: ServiceLevel | None = None, machine: Machine | None = None, replicas: int = 0
) -> list[Row]:
    """Play the trace; one row a second. Time begins at midnight UTC, which schedules see."""
    world = World(machine or Machine(), ready=replicas)
    state = begin(0.0, scaling, replicas)
    samples: deque[Sample] = deque(maxlen=WINDOW)
    engines: deque[EngineSample] = deque(maxlen=WINDOW)
    rows: list[Row] = []
    for second in range(trace.seconds):
        changed = world.changed
        load, ended = world.advance(second, trace.rate(second))
        if world.changed != changed:
            engines.clear()
        running = min(load, world.capacity)
        held = 0 if world.ready else load
        samples.append(Sample(float(second), load - held, held, ended))
        if world.ready:
            engines.append(EngineSample(float(second), running, load - running, running / world.capacity * 0.7))
        history = History(samples, engines, world.felt(second), world.ready)
        found: Decision = decide(second, MIDNIGHT + timedelta(seconds=second), history, scaling, slo, state)
        state = found.state
        world.scale(second, found.replicas)
        rows.append(Row(second, load, held, load - running - held, found.replicas, world.ready, found.reason))
    return rows


def changes(rows: list[Row]) -> list[Row]:
    """The rows at which another number was wanted than before."""
    return [now for before, now in pairwise(rows) if now.wanted != before.wanted]
