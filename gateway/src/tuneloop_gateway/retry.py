"""How many requests may be sent once more: a share of those that come, so that retries never multiply an outage.

The idea of Finagle's and gRPC's retry budgets. Every request pays in ``RATIO``, every retry takes out 1, and there is
something to begin with, so that the one failure of a calm hour can be repeated. A connection that could not be made
costs the server nothing and takes nothing out; ``ATTEMPTS`` bounds those. Pure. Never waits.
"""

from typing import Final

ATTEMPTS: Final = 3  # replicas that one request may meet
RATIO: Final = 0.2  # retries a request, in the long run
RESERVE: Final = 10.0  # retries that are there without any request before them
CEILING: Final = 100.0  # retries that a long calm may save up


class RetryBudget:
    """The budget of one deployment in one gateway."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = RESERVE

    def request(self) -> None:
        """A new request came."""
        self.left = min(self.left + RATIO, CEILING)

    def take(self) -> bool:
        """Whether one more retry is allowed; takes it."""
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True
