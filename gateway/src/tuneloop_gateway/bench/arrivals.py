"""When requests are sent: an open loop, in which a slow server gets no fewer requests than a fast one. Pure."""

import math
import random
from typing import Literal

Process = Literal["poisson", "constant"]


def schedule(count: int, rate: float, process: Process, seed: int) -> list[float]:
    """Offsets in seconds of ``count`` requests at ``rate`` per second; all 0 for an infinite rate.

    Poisson gaps are scaled so that the last request is due at ``count / rate``, as ``vllm bench serve`` does: else the
    rate of a short run would hang on the seed by some percent.

    Raises:
        ValueError: a count below 1 or a rate that is not above 0.
    """
    if count < 1 or not rate > 0:
        raise ValueError(f"{count} requests at {rate} per second: both must be above 0")
    if math.isinf(rate):
        return [0.0] * count
    if process == "constant":
        return [(number + 1) / rate for number in range(count)]
    chance = random.Random(seed)  # noqa: S311 - arrivals, not secrets
    offsets: list[float] = []
    at = 0.0
    for _ in range(count):
        at += chance.expovariate(1.0)
        offsets.append(at)
    return [offset * count / rate / at for offset in offsets]
