"""Which digests were seen, in memory that has a ceiling: 64 bits each in a flat hash table, never the rows.

A table holds at most ``LIMIT`` digests (8 bytes a slot, at most half of the slots filled: 32 MiB, 48 with counts);
what comes later is not remembered, and ``full`` says so: counts are then lower bounds. Two different rows are taken
for one with a probability of about n^2 / 2^65: 1e-7 at two million.
"""

from array import array
from hashlib import blake2b

LIMIT = 2**21
_START = 2**12  # slots


def digest(text: str, salt: bytes = b"") -> int:
    """64 bits of a text."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8, salt=salt).digest(), "big")


class Digests:
    """A bounded set of digests; with ``counted`` a bounded multiset."""

    def __init__(self, limit: int = LIMIT, counted: bool = False) -> None:
        self._limit = limit
        self._size = 0
        self._slots = array("Q", bytes(8 * _START))
        self._counts = array("I", bytes(4 * _START)) if counted else None
        self.full = False  # something was not remembered

    def __len__(self) -> int:
        """Digests that are remembered."""
        return self._size

    def add(self, key: int) -> bool:
        """Remember a digest; whether it was known."""
        slot = self._find(key := key or 1)  # 0 marks an empty slot
        known = self._slots[slot] == key
        if not known:
            if self._size >= self._limit:
                self.full = True
                return False
            slot = self._insert(key, slot)
        if self._counts is not None:
            self._counts[slot] += 1
        return known

    def take(self, key: int) -> int:
        """How often a digest was added since it was last taken."""
        slot = self._find(key := key or 1)
        if self._counts is None or self._slots[slot] != key:
            return 0
        count, self._counts[slot] = self._counts[slot], 0
        return count

    def _insert(self, key: int, slot: int) -> int:
        if 2 * (self._size + 1) > len(self._slots):
            self._double()
            slot = self._find(key)
        self._slots[slot] = key
        self._size += 1
        return slot

    def _find(self, key: int) -> int:
        """The slot of a digest, or the empty one where it belongs."""
        slots, mask = self._slots, len(self._slots) - 1
        slot = key & mask
        while slots[slot] and slots[slot] != key:
            slot = (slot + 1) & mask
        return slot

    def _double(self) -> None:
        slots, counts = self._slots, self._counts
        self._slots = array("Q", bytes(16 * len(slots)))
        self._counts = array("I", bytes(8 * len(slots))) if counts is not None else None
        for old, key in enumerate(slots):
            if key:
                new = self._find(key)
                self._slots[new] = key
                if self._counts is not None and counts is not None:
                    self._counts[new] = counts[old]
