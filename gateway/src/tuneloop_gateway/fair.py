"""Whose request goes next when more wait than can be served: deficit round robin between keys.

Shreedhar and Varghese, "Efficient Fair Queuing using Deficit Round Robin" (SIGCOMM 1995). Each key that waits gets
``QUANTUM`` tokens a round and sends what they pay for, so that a key with a thousand requests, or with long ones, takes
no more than its part from the others; a key alone gets everything. Where there is no room, the key with the most
waiting requests gives its newest up (McKenney, "Stochastic Fairness Queueing", 1990). Pure: never waits, never sends.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

QUANTUM: Final = 1024  # tokens, by the estimate that limits use
DEAREST: Final = 16 * QUANTUM  # a request counts as no more, so that its turn comes within so many rounds

T = TypeVar("T")


@dataclass
class _Line(Generic[T]):
    """What waits of one key, first come first."""

    waiting: deque[tuple[int, T]] = field(default_factory=deque)
    deficit: int = 0


class FairQueue(Generic[T]):
    """Items of several keys; ``pop`` gives the one whose turn it is."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line[T]] = {}
        self._round: deque[str] = deque()  # keys with something waiting, the one whose turn it is first
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, key: str, cost: int, item: T) -> None:
        """Wait at the end of the key's own line; ``cost`` in tokens."""
        if key not in self._lines:
            self._lines[key] = _Line(deficit=QUANTUM)
            self._round.append(key)
        self._lines[key].waiting.append((min(max(cost, 1), DEAREST), item))
        self._size += 1

    def pop(self) -> T:
        """The next one; a key goes on while its deficit pays, then it is the next key's turn.

        Raises:
            IndexError: nothing waits.
        """
        while True:
            key = self._round[0]
            line = self._lines[key]
            cost, item = line.waiting[0]
            if line.deficit >= cost:
                line.deficit -= cost
                line.waiting.popleft()
                self._removed(key)
                return item
            line.deficit += QUANTUM
            self._round.rotate(-1)

    def remove(self, key: str, item: T) -> None:
        """Take one out that no longer waits; nothing if it is gone already."""
        line = self._lines.get(key)
        for place in line.waiting if line else ():
            if place[1] == item and line is not None:
                line.waiting.remove(place)
                return self._removed(key)
        return None

    def displace(self, key: str) -> T | None:
        """Make room for one more of this key: the newest of the key with the most, or None if that is this key."""
        longest = max(self._lines, key=lambda each: len(self._lines[each].waiting), default=key)
        mine = len(self._lines[key].waiting) if key in self._lines else 0
        if longest == key or len(self._lines[longest].waiting) <= mine + 1:
            return None
        _, item = self._lines[longest].waiting.pop()
        self._removed(longest)
        return item

    def _removed(self, key: str) -> None:
        """One less; a key without anything waiting saves nothing up."""
        self._size -= 1
        if not self._lines[key].waiting:
            del self._lines[key]
            self._round.remove(key)
