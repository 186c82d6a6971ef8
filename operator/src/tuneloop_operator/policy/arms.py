"""Is the canary worse than the version that serves? The stated test of every rollback; docs/rollouts.md has its rates.

Four one-sided tests, each at level ``ALPHA`` for each look; what they must overcome are the limits of the spec:

- errors: the canary's share of failed requests is above ``errorRate`` (exact binomial test, Clopper and Pearson 1934)
  and above the stable arm's (Fisher's exact test, 1922): trouble that both arms share is not the canary's.
- TTFT, TPOT: the lower confidence bound of the canary's P95 is above ``ttftRatio`` or ``tpotRatio`` times the upper
  bound of the stable arm's. Bounds are order statistics (David and Nagaraja 2003, 7.1: of n observations the rank of
  the p-quantile is np -+ z sqrt(np(1-p))), read off the histograms by linear interpolation within a bucket.
- feedback: the share of good scores fell by more than ``feedbackDrop`` (difference of two proportions with one success
  and one failure added to each, Agresti and Caffo 2000).

Looks are repeated while a step lasts; ``ALPHA`` is small enough that this stays rare (simulated, not corrected for).
Pure; never decides when to look and never what follows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from tuneloop_core.api.formats import format_latency, parse_decimal
from tuneloop_core.api.rollout import CanaryLimits
from tuneloop_core.serving import Histogram
from tuneloop_operator.policy.latency import quantile

ALPHA: Final = 0.001
Z: Final = 3.0902  # the standard normal's quantile at 1 - ALPHA
TAIL: Final = 0.95  # the percentile that latencies are compared at
FEEDBACK_NEEDED: Final = 10  # scores that each arm needs before they are compared
NEGLIGIBLE: Final = 1e-12

Measure = Literal["errors", "ttft", "tpot", "feedback"]


@dataclass(frozen=True)
class Arm:
    """What one version did since the step began; times in seconds."""

    requests: int = 0
    errors: int = 0
    good: int = 0
    bad: int = 0
    ttft: Histogram | None = None
    tpot: Histogram | None = None

    @property
    def scores(self) -> int:
        """Feedback, good and bad."""
        return self.good + self.bad


@dataclass(frozen=True)
class Breach:
    """One limit that the canary is over, in words."""

    measure: Measure
    message: str


def breaches(stable: Arm, canary: Arm, limits: CanaryLimits) -> tuple[Breach, ...]:
    """Every limit that the canary is over; none while there is too little to say so."""
    found = (
        _errors(stable, canary, limits),
        _slower("ttft", stable.ttft, canary.ttft, limits.ttft_ratio),
        _slower("tpot", stable.tpot, canary.tpot, limits.tpot_ratio),
        _feedback(stable, canary, limits),
    )
    return tuple(breach for breach in found if breach is not None)


def _errors(stable: Arm, canary: Arm, limits: CanaryLimits) -> Breach | None:
    limit = parse_decimal(limits.error_rate)
    if binomial_tail(canary.errors, canary.requests, limit) > ALPHA:
        return None
    failed, all_requests = stable.errors + canary.errors, stable.requests + canary.requests
    if stable.requests and hypergeometric_tail(canary.errors, canary.requests, failed, all_requests) > ALPHA:
        return None
    words = f"{canary.errors} of {canary.requests} requests failed, with the version before {stable.errors} of "
    return Breach("errors", f"{words}{stable.requests}; limits.errorRate is {limits.error_rate}")


def _slower(
    measure: Literal["ttft", "tpot"], stable: Histogram | None, canary: Histogram | None, ratio: str
) -> Breach | None:
    least, most = lower_bound(canary), upper_bound(stable)
    if least is None or most is None or least <= parse_decimal(ratio) * most:
        return None
    now, before = quantile(TAIL, canary) if canary else None, quantile(TAIL, stable) if stable else None
    words = f"{measure.upper()} P95 is {format_latency(now or least)}, with the version before "
    return Breach(measure, f"{words}{format_latency(before or most)}; limits.{measure}Ratio is {ratio}")


def _feedback(stable: Arm, canary: Arm, limits: CanaryLimits) -> Breach | None:
    if min(stable.scores, canary.scores) < FEEDBACK_NEEDED:
        return None
    if drop_at_least(stable.good, stable.scores, canary.good, canary.scores) <= parse_decimal(limits.feedback_drop):
        return None
    words = f"{canary.good} of {canary.scores} scores are good, with the version before {stable.good} of "
    return Breach("feedback", f"{words}{stable.scores}; limits.feedbackDrop is {limits.feedback_drop}")


def lower_bound(histogram: Histogram | None) -> float | None:
    """Seconds that P95 is surely above; None without observations enough."""
    return _at_rank(histogram, -Z)


def upper_bound(histogram: Histogram | None) -> float | None:
    """Seconds that P95 is surely below; None below some 180 observations, or where they are over the last bucket."""
    return _at_rank(histogram, Z)


def _at_rank(histogram: Histogram | None, z: float) -> float | None:
    count = histogram.counts[-1] if histogram and histogram.counts else 0
    if histogram is None or count <= 0:
        return None
    share = TAIL + z * math.sqrt(TAIL * (1 - TAIL) / count)
    unbounded = z > 0 and share * count > histogram.counts[len(histogram.bounds) - 1]
    return None if share <= 0 or share >= 1 or unbounded else quantile(share, histogram)


def drop_at_least(good1: int, all1: int, good2: int, all2: int) -> float:
    """By how much the second share is surely below the first; negative where it may be above."""
    first, second = (good1 + 1) / (all1 + 2), (good2 + 1) / (all2 + 2)
    error = math.sqrt(first * (1 - first) / (all1 + 2) + second * (1 - second) / (all2 + 2))
    return first - second - Z * error


def binomial_tail(count: int, trials: int, share: float) -> float:
    """P(X >= count) of a binomial; 1 where the count is not above what is expected."""
    if count <= trials * share:
        return 1.0
    if share <= 0:
        return 0.0
    first = _log_choose(trials, count) + count * math.log(share) + (trials - count) * math.log1p(-share)
    return _tail(first, count, trials, lambda k: (trials - k) / (k + 1) * share / (1 - share))


def hypergeometric_tail(count: int, draws: int, marked: int, population: int) -> float:
    """P(X >= count) marked ones among ``draws`` of a population; 1 where the count is not above what is expected."""
    if count * population <= draws * marked:
        return 1.0
    plain = population - marked
    first = _log_choose(marked, count) + _log_choose(plain, draws - count) - _log_choose(population, draws)
    return _tail(
        first, count, min(draws, marked), lambda k: (marked - k) * (draws - k) / ((k + 1) * (plain - draws + k + 1))
    )


def _tail(log_first: float, start: int, end: int, ratio: Callable[[int], float]) -> float:
    """Sum of a distribution from ``start`` on, each term from the one before it; they fall beyond the mean."""
    term = total = math.exp(log_first)
    for k in range(start, end):
        term *= ratio(k)
        total += term
        if term < NEGLIGIBLE * total:
            break
    return min(1.0, total)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
