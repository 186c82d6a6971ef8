"""Early stopping: when the held-out loss no longer falls. Pure functions of the looks so far, (step, loss) each."""

import math
from collections.abc import Sequence

Look = tuple[int, float]


def best(looks: Sequence[Look]) -> Look | None:
    """The first look with the lowest loss; one that is no number is the worst."""
    return min(looks, key=_rank, default=None)


def exhausted(looks: Sequence[Look], patience: int) -> bool:
    """Whether the last ``patience`` looks brought nothing better than those before them."""
    found = best(looks)
    return found is not None and len(looks) - 1 - looks.index(found) >= patience


def _rank(look: Look) -> tuple[float, int]:
    step, loss = look
    return (loss if math.isfinite(loss) else math.inf, step)
