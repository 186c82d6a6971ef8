"""Whose turn it is: tables of what waits and the order in which it goes; and shares over long runs."""

import random
from collections import Counter

import pytest

from tuneloop_gateway.fair import DEAREST, QUANTUM, FairQueue


def filled(*lines: tuple[str, list[int]]) -> FairQueue[str]:
    """Lines of (key, costs) pushed one key after the other; items are named after key and number."""
    queue: FairQueue[str] = FairQueue()
    for key, costs in lines:
        for number, cost in enumerate(costs):
            queue.push(key, cost, f"{key}{number}")
    return queue


def drained(queue: FairQueue[str]) -> list[str]:
    return [queue.pop() for _ in range(len(queue))]


@pytest.mark.parametrize(
    ("lines", "order"),
    [
        ([("a", [QUANTUM] * 3)], "a0 a1 a2"),
        ([("a", [QUANTUM] * 4), ("b", [QUANTUM] * 2)], "a0 b0 a1 b1 a2 a3"),
        ([("a", [QUANTUM] * 3), ("b", [QUANTUM // 2] * 4)], "a0 b0 b1 a1 b2 b3 a2"),
        ([("a", [3 * QUANTUM, 1]), ("b", [QUANTUM] * 4)], "b0 b1 a0 b2 a1 b3"),
        ([("a", [1] * 3), ("b", [1])], "a0 a1 a2 b0"),
        ([("a", [0, -5]), ("b", [QUANTUM])], "a0 a1 b0"),
        (
            [("a", [QUANTUM]), ("b", [10 * DEAREST]), ("c", [QUANTUM] * 16)],
            "a0 " + " ".join(f"c{n}" for n in range(15)) + " b0 c15",
        ),
    ],
    ids=[
        "alone",
        "turns",
        "two cheap for one dear",
        "a dear one saves up",
        "small ones",
        "no cost",
        "the dearest is capped",
    ],
)
def test_the_order(lines: list[tuple[str, list[int]]], order: str) -> None:
    assert drained(filled(*lines)) == order.split()


def test_two_keys_get_the_same_tokens_however_they_cut_them() -> None:
    chance = random.Random(7)
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for key, dearest in (("short", 200), ("long", 8000)):
        for _ in range(4000):
            cost = chance.randint(1, dearest)
            queue.push(key, cost, (key, cost))
    got: Counter[str] = Counter()
    while got.total() < 600_000:
        key, cost = queue.pop()
        got[key] += cost
    assert abs(got["short"] - got["long"]) < 8000 + QUANTUM


def test_a_key_that_comes_back_has_saved_nothing_up() -> None:
    queue = filled(("a", [1]))
    assert queue.pop() == "a0"
    queue.push("b", QUANTUM, "b0")
    for number in range(3):
        queue.push("a", QUANTUM, f"a{number}")
    assert drained(queue) == ["b0", "a0", "a1", "a2"]


def test_what_left_is_passed_over() -> None:
    queue = filled(("a", [1, 1]), ("b", [1]))
    queue.remove("a", "a0")
    queue.remove("a", "a0")
    queue.remove("b", "b0")
    queue.remove("nobody", "x")
    assert len(queue) == 1
    assert drained(queue) == ["a1"]
    with pytest.raises(IndexError):
        queue.pop()


@pytest.mark.parametrize(
    ("waiting", "newcomer", "given_up"),
    [
        ({"a": 4}, "b", "a3"),
        ({"a": 4}, "a", None),
        ({"a": 3, "b": 1}, "b", "a2"),
        ({"a": 2, "b": 1}, "b", None),
        ({"a": 2, "b": 2}, "c", "a1"),
        ({"a": 1, "b": 1}, "c", None),
        ({}, "a", None),
    ],
)
def test_who_gives_up_a_place(waiting: dict[str, int], newcomer: str, given_up: str | None) -> None:
    queue = filled(*((key, [1] * count) for key, count in waiting.items()))
    assert queue.displace(newcomer) == given_up
    assert len(queue) == sum(waiting.values()) - (given_up is not None)
