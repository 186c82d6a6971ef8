"""What each signal asks for, in replicas and in words: load, engine queue, KV cache, promised latency. Pure.

Every wish is about one moment and knows no delay and no limit; ``autoscale`` takes the largest. CPU is no signal: an
engine that waits for memory bandwidth looks idle or busy whatever its users feel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tuneloop_core.api.formats import format_latency, parse_duration
from tuneloop_core.api.scaling import ServiceLevel

KV_CACHE_TARGET = 0.8
"""Share of the KV cache at which a replica is full: above it vLLM soon preempts requests and computes them again."""
SLO_NEAR = 0.7
"""Above this share of a promised latency no replica is taken away."""
SLO_REQUESTS = 20
"""Fewest measured requests that a 95th percentile is believed of."""
GROWTH = 2
"""An engine queue asks for at most so many times the replicas that answer."""


@dataclass(frozen=True)
class Sample:
    """The load at one moment, over all gateways."""

    at: float  # seconds of a clock that never jumps
    ongoing: int = 0
    queued: int = 0
    ended: int = 0  # requests that ended since the sample before
    complete: bool = True  # whether every gateway was heard

    @property
    def load(self) -> int:
        """Requests in progress or held."""
        return self.ongoing + self.queued

    @property
    def active(self) -> bool:
        """Whether anything was asked at all."""
        return self.load > 0 or self.ended > 0


@dataclass(frozen=True)
class EngineSample:
    """The engines' own numbers at one moment, over the replicas that answered."""

    at: float
    running: float = 0.0
    waiting: float = 0.0
    kv_cache: float = 0.0  # mean share used, 0 to 1


@dataclass(frozen=True)
class Felt:
    """What users of the revision that serves felt since the number of ready replicas last changed; seconds.

    Of the last minute. What a canary's users felt judges the canary, and sizes nothing.
    """

    requests: int = 0
    ttft_p95: float | None = None
    tpot_p95: float | None = None


@dataclass(frozen=True)
class History:
    """What was seen: samples of the last minute, oldest first."""

    samples: Sequence[Sample] = ()
    engines: Sequence[EngineSample] = ()  # since the number of ready replicas last changed
    felt: Felt = Felt()
    ready: int = 0  # replicas that answer
    beside: int = 0  # of them, those of a revision whose size follows from the other's: a canary

    @property
    def latest(self) -> Sample:
        """The newest sample; nothing known looks like nothing heard."""
        return self.samples[-1] if self.samples else Sample(0.0, complete=False)

    @property
    def sized(self) -> int:
        """Replicas that answer, of the revision whose size is decided."""
        return self.ready - self.beside

    def mean_load(self, since: float) -> float:
        """Mean of requests in progress or held, over the samples from ``since`` on."""
        loads = [sample.load for sample in self.samples if sample.at >= since]
        return sum(loads) / len(loads) if loads else 0.0


@dataclass(frozen=True)
class Wish:
    """So many replicas, and why."""

    replicas: int
    reason: str


def load_wish(history: History, target: int, since: float) -> Wish:
    """Enough that no replica has more than ``target`` requests, by the mean from ``since`` on; none when it is calm."""
    if not history.latest.active:
        return Wish(0, "no request")
    mean = history.mean_load(since)
    words = f"{mean:.1f} requests in progress or held, a replica takes {target}"
    return Wish(max(1, needed(mean, target)), words)


def engine_wishes(history: History) -> list[Wish]:
    """By the engines' queue and by their KV cache, each over what was seen since the replicas last changed."""
    if not history.engines or not history.ready or not history.latest.active:
        return []
    count = len(history.engines)
    running = sum(each.running for each in history.engines) / count
    waiting = sum(each.waiting for each in history.engines) / count
    kv_cache = sum(each.kv_cache for each in history.engines) / count
    found = [Wish(needed(history.ready * kv_cache, KV_CACHE_TARGET), f"the KV cache is {kv_cache:.0%} full")]
    if waiting >= 1:
        wanted = needed(history.ready * (running + waiting), max(running, 1))
        words = f"{waiting:.1f} requests wait in the engines, which run {running:.1f}"
        found.append(Wish(min(wanted, GROWTH * history.ready), words))
    return found


def slo_wishes(history: History, slo: ServiceLevel | None, since: float) -> list[Wish]:
    """One replica more for a promise that is broken, none less for one that is nearly so; a canary's do not count.

    Only while each replica has a request at a time or more: below that another one makes nothing faster.
    """
    if slo is None or not history.ready or history.felt.requests < SLO_REQUESTS:
        return []
    if history.mean_load(since) < history.ready:
        return []
    pairs = (("TTFT", history.felt.ttft_p95, slo.ttft_p95), ("TPOT", history.felt.tpot_p95, slo.tpot_p95))
    return [
        Wish(history.sized + (felt > parse_duration(promised)), f"{name} P95 {format_latency(felt)} of {promised}")
        for name, felt, promised in pairs
        if felt is not None and promised and felt > SLO_NEAR * parse_duration(promised)
    ]


def needed(load: float, capacity: float) -> int:
    """How many times ``capacity`` holds ``load``; a hair over a whole number is that number."""
    return math.ceil(load / capacity - 1e-9)
