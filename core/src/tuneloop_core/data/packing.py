"""How well rows fill packs: best-fit decreasing over counts of lengths, so that its cost hangs on the lengths only.

What training packs differs a little: it packs the documents of one step, on some devices into smaller packs. Never
looks at a row.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Packing:
    """Rows in packs of ``capacity`` tokens."""

    capacity: int
    packs: int
    tokens: int

    @property
    def efficiency(self) -> float:
        """Tokens over what the packs could hold, 0 to 1."""
        return self.tokens / (self.packs * self.capacity) if self.packs else 0.0


def pack_lengths(counts: Mapping[int, int], capacity: int) -> Packing:
    """Pack ``counts`` (length to rows; longer ones are cut to the capacity) by best-fit decreasing.

    Rows of one length go together: into the open packs with the least room that takes them, then into new ones.
    """
    lengths: Counter[int] = Counter()
    for length, count in counts.items():
        lengths[min(length, capacity)] += count
    rooms = _Rooms()
    packs = 0
    for length in sorted(lengths.keys() - {0}, reverse=True):
        left = rooms.fill(length, lengths[length])
        new, rest = divmod(left, capacity // length)
        rooms.add(capacity % length, new)
        if rest:
            rooms.add(capacity - rest * length, 1)
        packs += new + bool(rest)
    return Packing(capacity, packs, sum(length * count for length, count in lengths.items()))


class _Rooms:
    """Open packs by the room that is left in them."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._sorted: list[int] = []

    def add(self, room: int, packs: int) -> None:
        """So many packs with that room."""
        if not room or not packs:
            return
        if room not in self._counts:
            insort(self._sorted, room)
        self._counts[room] = self._counts.get(room, 0) + packs

    def fill(self, length: int, rows: int) -> int:
        """Put rows of one length into open packs, the tightest first; how many are left over."""
        while rows and (at := bisect_left(self._sorted, length)) < len(self._sorted):
            room = self._sorted.pop(at)
            packs, each = self._counts.pop(room), room // length
            whole = min(packs, rows // each)
            rest = rows - whole * each if whole < packs else 0
            self.add(room - each * length, whole)
            if rest:
                self.add(room - rest * length, 1)
            self.add(room, packs - whole - bool(rest))
            rows -= whole * each + rest
        return rows
