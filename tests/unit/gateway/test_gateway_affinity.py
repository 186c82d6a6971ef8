"""The same beginning leads to the same replica, evenly, steadily, and never to one that has too much."""

import random
from collections import Counter
from dataclasses import dataclass
from math import ceil
from typing import Any

import pytest

from tuneloop_gateway.affinity import LOAD_FACTOR, choose, hash64, prompt_key

KEYS = [hash64(b"prompt %d" % number) for number in range(4000)]


@dataclass(eq=False)
class End:
    seed: int
    ongoing: int = 0


def ends(count: int) -> list[End]:
    return [End(hash64(b"10.0.0.%d:8000" % number)) for number in range(count)]


@pytest.mark.parametrize("count", [2, 3, 8, 32])
def test_keys_are_spread_evenly(count: int) -> None:
    replicas = ends(count)
    found = Counter(choose(replicas, key).seed for key in KEYS)
    mean = len(KEYS) / count
    assert len(found) == count
    assert max(found.values()) < mean + 5 * mean**0.5, "five standard deviations of a fair draw"


@pytest.mark.parametrize("count", [2, 3, 8, 32])
def test_a_replica_that_joins_or_leaves_moves_only_its_own_share(count: int) -> None:
    more = ends(count + 1)
    before = {key: choose(more[:count], key) for key in KEYS}
    after = {key: choose(more, key) for key in KEYS}
    moved = [key for key in KEYS if before[key] is not after[key]]
    assert all(after[key] is more[count] for key in moved), "nobody else's keys move"
    assert len(moved) / len(KEYS) == pytest.approx(1 / (count + 1), rel=0.3)


@pytest.mark.parametrize("seed", range(200))
def test_the_chosen_one_is_under_the_bound(seed: int) -> None:
    chance = random.Random(seed)
    ongoing, key = [chance.randrange(200) for _ in range(chance.randint(1, 40))], chance.getrandbits(64)
    replicas = [End(hash64(b"%d" % number), count) for number, count in enumerate(ongoing)]
    chosen = choose(replicas, key)
    assert chosen.ongoing + 1 <= ceil(LOAD_FACTOR * (sum(ongoing) + 1) / len(ongoing))


@pytest.mark.parametrize("count", [1, 2, 5, 12])
@pytest.mark.parametrize("requests", [1, 7, 300])
def test_one_popular_prompt_overflows(count: int, requests: int) -> None:
    replicas = ends(count)
    for _ in range(requests):
        choose(replicas, KEYS[0]).ongoing += 1
    assert max(each.ongoing for each in replicas) <= ceil(LOAD_FACTOR * requests / count)


def test_the_order_of_the_replicas_does_not_matter() -> None:
    replicas = ends(9)
    assert all(choose(replicas, key) is choose(replicas[::-1], key) for key in KEYS[:200])


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_all_turns_of_a_conversation_have_one_key() -> None:
    first = chat(("system", "You help."), ("user", "Where is my order?"))
    later = chat(*[(m["role"], m["content"]) for m in first["messages"]], ("assistant", "There."), ("user", "Thanks"))
    assert prompt_key(first, "qa", 2048) == prompt_key(later, "qa", 2048)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (chat(("user", "a")), chat(("user", "b")), False),
        (chat(("user", "x" * 100 + "a")), chat(("user", "x" * 100 + "b")), True),  # beyond the limit
        (chat(("system", "s"), ("user", "a")), chat(("system", "t"), ("user", "a")), False),
        ({"prompt": "abc"}, {"prompt": "abc"}, True),
        ({"prompt": [1, 2, 3]}, {"prompt": [1, 2, 4]}, False),
        (chat(("user", [{"type": "text", "text": "a"}])), chat(("user", [{"type": "text", "text": "b"}])), False),
    ],
)
def test_what_makes_a_key(one: dict[str, Any], other: dict[str, Any], same: bool) -> None:
    assert (prompt_key(one, "qa", 64) == prompt_key(other, "qa", 64)) is same


def test_adapters_of_one_base_have_keys_of_their_own() -> None:
    fields = {"prompt": "abc"}
    assert prompt_key(fields, "bot@0123456789ab", 64) != prompt_key(fields, "qa", 64)


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, 64),
        ({"prompt": ""}, 64),
        ({"prompt": 7}, 64),
        ({"messages": []}, 64),
        ({"messages": [3]}, 64),
        ({"prompt": "a"}, 0),
    ],
)
def test_what_has_no_key(fields: dict[str, Any], limit: int) -> None:
    assert prompt_key(fields, "qa", limit) is None
