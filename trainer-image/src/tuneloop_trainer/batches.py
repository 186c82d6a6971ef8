"""Which documents make which step, and how a step is packed: a pure function of lengths, settings and seed.

A position in training is therefore two numbers, step and microbatch, and resuming needs no state of a data loader.
Steps of an epoch have nearly equal token counts, so that none is a noisy remainder. Never reads a token.
"""

from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt
from tuneloop_core.plan.machines import SMALLEST_PACK


@dataclass(frozen=True)
class Schedule:
    """The whole training run as steps over documents."""

    lengths: npt.NDArray[np.int64]
    tokens_per_step: int
    epochs: int
    max_steps: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Epoch tokens over ``tokens_per_step``, rounded up as ``tuneloop_core.plan`` does; at most one a document."""
        wanted = -(-int(self.lengths.sum()) // self.tokens_per_step)
        return max(1, min(wanted, len(self.lengths)))

    @property
    def total_steps(self) -> int:
        """All epochs, or ``max_steps`` if that is fewer."""
        steps = self.epochs * self.steps_per_epoch
        return min(steps, self.max_steps) if self.max_steps else steps

    def documents(self, step: int) -> npt.NDArray[np.int64]:
        """The documents of a step, counted from 0."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths))
        ends = self._ends(order)
        return order[ends[within - 1] if within else 0 : ends[within]]

    def used(self) -> list[int]:
        """All documents that the steps take, in order of their numbers."""
        steps = range(min(self.total_steps, self.steps_per_epoch))
        return sorted({int(number) for step in steps for number in self.documents(step)})

    def _ends(self, order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where each step ends in the order: equal shares of the tokens, at least one document each."""
        steps, count = self.steps_per_epoch, len(order)
        reached = np.cumsum(self.lengths[order])
        shares = reached[-1] * (np.arange(1, steps + 1) / steps)
        ends = np.searchsorted(reached, shares - 0.5, side="left") + 1
        number = np.arange(steps)
        ends = np.maximum.accumulate(ends - number) + number  # strictly increasing
        ends = np.minimum(ends, count - (steps - 1 - number))
        cut: npt.NDArray[np.int64] = ends.astype(np.int64)
        return cut


def pack(
    documents: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], capacity: int, packing: bool
) -> list[list[int]]:
    """Documents in as few packs of at most ``capacity`` tokens as first-fit decreasing finds; longer ones alone.

    Without packing, one document a pack. The packs' order is fixed by lengths and numbers alone.
    """
    if not packing:
        return [[int(document)] for document in documents]
    packs: list[list[int]] = []
    room: list[int] = []
    for document in sorted(documents.tolist(), key=lambda number: (-int(lengths[number]), number)):
        length = int(lengths[document])
        place = next((index for index, left in enumerate(room) if left >= length), None)
        if place is None:
            packs.append([document])
            room.append(capacity - length)
        else:
            packs[place].append(document)
            room[place] -= length
    return packs


def halved(capacity: int, lengths: npt.NDArray[np.int64], packing: bool) -> int:
    """Half a pack's tokens; 0 where that makes no pack smaller, since rows are never cut, or too small a pack."""
    helps = packing and capacity > int(lengths.max()) and capacity // 2 >= SMALLEST_PACK
    return capacity // 2 if helps else 0


def spread(
    documents: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], capacity: int, packing: bool, ranks: int
) -> list[list[list[int]]]:
    """A step's documents for several ranks: rounds of one pack a rank, nearly equal in tokens; a pack may be empty.

    As few rounds as the capacity allows. Each document goes, longest first, into the pack with the fewest tokens.
    Together the packs hold what ``pack`` would: the step is the same, whatever the number of ranks.
    """
    if ranks == 1:
        return [[each] for each in pack(documents, lengths, capacity, packing)]
    order = sorted(documents.tolist(), key=lambda number: (-int(lengths[number]), number))
    if not packing:
        alone = [[number] for number in order]
        rows = [alone[start : start + ranks] for start in range(0, len(alone), ranks)]
        return [[*row, *([] for _ in range(ranks - len(row)))] for row in rows]
    fewest = -(-len(pack(documents, lengths, capacity, packing)) // ranks)
    rounds = next(
        n for n in range(fewest, len(order) + 1) if _fits(_level(order, lengths, n * ranks), lengths, capacity)
    )
    packs = _level(order, lengths, rounds * ranks)
    return [packs[start : start + ranks] for start in range(0, len(packs), ranks)]


def _level(order: list[int], lengths: npt.NDArray[np.int64], count: int) -> list[list[int]]:
    """So many packs, the fullest first."""
    packs: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, place) for place in range(count)]
    for number in order:
        tokens, place = heappop(heap)
        packs[place].append(number)
        heappush(heap, (tokens + int(lengths[number]), place))
    tokens_of = {place: tokens for tokens, place in heap}
    return [packs[place] for place in sorted(range(count), key=lambda place: (-tokens_of[place], place))]


def _fits(packs: list[list[int]], lengths: npt.NDArray[np.int64], capacity: int) -> bool:
    """Whether no pack of several documents is larger than the capacity."""
    return all(len(each) < 2 or int(lengths[each].sum()) <= capacity for each in packs)
