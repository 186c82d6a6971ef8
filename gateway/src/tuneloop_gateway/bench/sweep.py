"""Finds the highest rate that still meets the objectives: doubles until it fails, then halves the gap. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

PRECISION = 0.05  # the answer is the best rate that was tried, and one 5 % higher failed
FLOOR = 0.01  # requests per second below which nothing is looked for


@dataclass(frozen=True)
class Trial:
    """A rate that was tried, and whether it met the objectives."""

    rate: float
    met: bool


def best(trials: Sequence[Trial]) -> float | None:
    """The highest rate that met the objectives below every rate that failed; None when none did."""
    failed = min((trial.rate for trial in trials if not trial.met), default=float("inf"))
    return max((trial.rate for trial in trials if trial.met and trial.rate < failed), default=None)


def next_rate(trials: Sequence[Trial], first: float, highest: float) -> float | None:
    """The rate to try next; None when the answer is known well enough.

    ``first`` begins; nothing above ``highest`` is tried (requests per second).
    """
    if not trials:
        return min(first, highest)
    good = best(trials)
    failed = min((trial.rate for trial in trials if not trial.met), default=None)
    if failed is None:
        return None if good is None or good >= highest else min(good * 2, highest)
    if good is None:
        return failed / 2 if failed / 2 >= FLOOR else None
    return (good * failed) ** 0.5 if failed / good > 1 + PRECISION else None
