"""Which endpoint takes the next request, among those that work: by adapter and prompt, else by fewest ongoing.

Pure: states, time and chance come in, an endpoint goes out. A full scan beats two random choices at the sizes of one
deployment (tens of pods): it is exact, and 16 endpoints cost two microseconds. Never keeps state of its own.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from tuneloop_gateway import affinity
from tuneloop_gateway.outlier import Health


class State(Protocol):
    """What is known of one endpoint."""

    ongoing: int
    seed: int
    health: Health


S = TypeVar("S", bound=State)


def pick(  # noqa: PLR0913 - all that decides
    states: Sequence[S],
    now: float,
    chance: float,
    tried: Sequence[S] = (),
    key: int | None = None,
    home: affinity.Home | None = None,
) -> S | None:
    """The endpoint for the next request, or None if there is none.

    An ejected endpoint whose time is over gets one request as its probe. Others that are ejected are passed over while
    another is left; if all are, the one whose time ends first is tried, for a request that may fail is better than one
    that surely does. ``key`` is the prompt's; without one the fewest ongoing count, and ``chance`` in [0, 1) breaks
    ties, so that gateways that start together do not all choose the same pod. ``home`` is the adapter's, where replicas
    cannot hold all of them. ``tried`` are those that this request has met already.
    """
    left = [state for state in states if state not in tried] if tried else states
    working = [state for state in left if not state.health.until]
    if len(working) < len(left):
        probe = min((each for each in left if each.health.due(now)), key=lambda each: each.health.until, default=None)
        if probe is not None:
            return probe
    if not working:
        return min(left, key=lambda state: state.health.until, default=None)
    found = working if home is None else affinity.near(working, home)
    return _least(found, chance) if key is None else affinity.choose(found, key)


def _least(working: Sequence[S], chance: float) -> S:
    least = min(state.ongoing for state in working)
    equal = [state for state in working if state.ongoing == least]
    return equal[int(chance * len(equal))]
