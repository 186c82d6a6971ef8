"""Two arms of a canary under simulated traffic, for the false-alarm and detection rates of the stated test.

``python tests/support/rollout_traffic.py`` prints the table of docs/rollouts.md (some minutes); tests run a small part.
"""

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from tuneloop_core.api.rollout import CanaryLimits
from tuneloop_core.serving import Histogram
from tuneloop_gateway.measure import TTFT_BOUNDS
from tuneloop_operator.policy.arms import Arm, breaches

LOOK_EVERY = 20  # requests between two looks
MIN_REQUESTS = 50


@dataclass(frozen=True)
class Traffic:
    """What both versions are truly like; (stable, canary) each."""

    errors: tuple[float, float] = (0.005, 0.005)
    ttft_ratio: float = 1.0
    good: tuple[float, float] = (0.8, 0.8)
    scored: float = 0.2  # share of requests that are scored


@dataclass
class Counts:
    """One arm while it is counted."""

    requests: int = 0
    errors: int = 0
    good: int = 0
    bad: int = 0

    def __post_init__(self) -> None:
        self.buckets = [0] * (len(TTFT_BOUNDS) + 1)

    def arm(self) -> Arm:
        ttft = Histogram(bounds=list(TTFT_BOUNDS), counts=list(accumulate(self.buckets)))
        return Arm(self.requests, self.errors, self.good, self.bad, ttft)


def rollout(rng: random.Random, traffic: Traffic, weight: float, requests: int) -> tuple[Sequence[str], int]:
    """One step: which limits were found broken first, and after how many of the canary's requests."""
    arms, limits = (Counts(), Counts()), CanaryLimits()
    for number in range(1, requests + 1):
        is_canary = rng.random() < weight
        _count(rng, arms[is_canary], traffic, is_canary)
        if number % LOOK_EVERY == 0 and arms[1].requests >= MIN_REQUESTS:
            found = breaches(arms[0].arm(), arms[1].arm(), limits)
            if found:
                return [each.measure for each in found], arms[1].requests
    return (), arms[1].requests


def _count(rng: random.Random, counts: Counts, traffic: Traffic, is_canary: bool) -> None:
    counts.requests += 1
    counts.errors += rng.random() < traffic.errors[is_canary]
    seconds = rng.lognormvariate(-1.5, 0.5) * (traffic.ttft_ratio if is_canary else 1.0)
    counts.buckets[bisect_left(TTFT_BOUNDS, seconds)] += 1
    if rng.random() < traffic.scored:
        if rng.random() < traffic.good[is_canary]:
            counts.good += 1
        else:
            counts.bad += 1


def rate(traffic: Traffic, weight: float, requests: int, times: int, seed: int = 1) -> tuple[float, int]:
    """Share of steps that end in a rollback, and the median of the canary's requests until then."""
    rng = random.Random(seed)
    ended = [rollout(rng, traffic, weight, requests) for _ in range(times)]
    hits = sorted(count for measures, count in ended if measures)
    return len(hits) / times, hits[len(hits) // 2] if hits else 0


CASES = {
    "both versions alike": Traffic(),
    "exactly at every limit": Traffic((0.005, 0.02), 1.5, (0.8, 0.7)),
    "5 % errors": Traffic(errors=(0.005, 0.05)),
    "10 % errors": Traffic(errors=(0.005, 0.1)),
    "both versions fail 10 %": Traffic(errors=(0.1, 0.1)),
    "TTFT twice as long": Traffic(ttft_ratio=2.0),
    "TTFT three times as long": Traffic(ttft_ratio=3.0),
    "good feedback 80 % to 50 %": Traffic(good=(0.8, 0.5)),
    "good feedback 80 % to 30 %": Traffic(good=(0.8, 0.3)),
}

if __name__ == "__main__":
    for title, case in CASES.items():
        cells = [rate(case, weight, 2000, 200) for weight in (0.1, 0.5)]
        print(f"| {title} | " + " | ".join(f"{share:.1%} | {count or '-'}" for share, count in cells) + " |")
