"""Which endpoint takes the next request: the one with the fewest ongoing, among those that work.

Pure: states, time and chance come in, an endpoint goes out. A full scan beats two random choices at the sizes of one
deployment (tens of pods): it is exact, and 16 endpoints cost two microseconds. Never keeps state of its own.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar


class State(Protocol):
    """What is known of one endpoint."""

    ongoing: int
    rests_until: float  # seconds of the same clock as ``now``; 0 if it never failed


S = TypeVar("S", bound=State)


def pick(states: Sequence[S], now: float, chance: float, tried: Sequence[S] = ()) -> S | None:
    """The endpoint for the next request, or None if there is none.

    Endpoints that failed recently are passed over while another is left; if all rest, the one whose rest ends first is
    tried, for a request that may fail is better than one that surely does. ``chance`` in [0, 1) breaks ties, so that
    gateways that start together do not all choose the same pod. ``tried`` are those that this request has met already.
    """
    left = [state for state in states if state not in tried] if tried else states
    if not left:
        return None
    working = [state for state in left if state.rests_until <= now]
    if not working:
        return min(left, key=lambda state: state.rests_until)
    least = min(state.ongoing for state in working)
    equal = [state for state in working if state.ongoing == least]
    return equal[int(chance * len(equal))]
