"""Load traces: arrivals a second over time, each a plain function, so that a run is the same every time."""

import math
from collections.abc import Callable
from dataclasses import dataclass

Rate = Callable[[int], float]


@dataclass(frozen=True)
class Trace:
    """Requests a second by second, for so many seconds."""

    name: str
    seconds: int
    rate: Rate


def step(second: int) -> float:
    """Nothing, eight requests a second for twenty minutes, nothing."""
    return 8.0 if 60 <= second < 1260 else 0.0


def ramp(second: int) -> float:
    """From nothing to twelve a second in twenty minutes, and back as slowly."""
    return max(0.0, 12.0 * (1 - abs(second - 1200) / 1200))


def burst(second: int) -> float:
    """One a second, and two bursts of twenty a second for half a minute."""
    return 20.0 if 300 <= second < 330 or 1500 <= second < 1530 else 1.0


def diurnal(second: int) -> float:
    """A day squeezed into an hour: a wave from nothing at night to ten a second at noon."""
    return max(0.0, 10.0 * math.sin(math.pi * ((second % 3600) - 900) / 1800))


def flapping(second: int) -> float:
    """Nine a second and one a second, half a minute each."""
    return 9.0 if second % 60 < 30 else 1.0


def lone(second: int) -> float:
    """A single request, and a second one an hour later."""
    return 1.0 if second in (30, 3630) else 0.0


TRACES = {
    "step": Trace("step", 2400, step),
    "ramp": Trace("ramp", 3000, ramp),
    "burst": Trace("burst", 2400, burst),
    "diurnal": Trace("diurnal", 3600, diurnal),
    "flapping": Trace("flapping", 1800, flapping),
    "lone": Trace("lone", 4500, lone),
}
