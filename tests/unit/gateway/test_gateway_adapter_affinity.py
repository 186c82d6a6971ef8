"""More adapters than a replica holds: each goes where it is already, and only as wide as its own load asks."""

import random
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import gateway_world as world
import pytest
from gateway_world import order
from openai import AsyncOpenAI

from tuneloop_gateway.affinity import LIGHT, Home, bound, choose, hash64, near
from tuneloop_gateway.balance import pick
from tuneloop_gateway.config import Limits
from tuneloop_gateway.outlier import Health
from tuneloop_gateway.routes import parse_deployment

REPLICAS, ADAPTERS, CACHED = 4, 48, 16


class End:
    """A replica that holds the ``CACHED`` adapters that were used last, as the engine does."""

    def __init__(self, number: int, ongoing: int = 0) -> None:
        self.seed = hash64(b"10.0.0.%d:8000" % number)
        self.ongoing = ongoing
        self.health = Health()
        self.misses = 0
        self._held: OrderedDict[int, None] = OrderedDict()

    def use(self, adapter: int) -> None:
        self.ongoing += 1
        self.misses += adapter not in self._held
        self._held[adapter] = None
        self._held.move_to_end(adapter)
        if len(self._held) > CACHED:
            self._held.popitem(last=False)


def home(adapter: int, requests: int = 1) -> Home:
    return Home(hash64(b"bot-%d" % adapter), requests)


Rule = Callable[[Sequence[End], Home, int], End]


def by_prompt(ends: Sequence[End], _: Home, key: int) -> End:
    """The adapter's name in the prompt's key only, which is what is done where every replica holds all."""
    return choose(ends, key)


def by_adapter(ends: Sequence[End], where: Home, key: int) -> End:
    return choose(near(ends, where), key)


def misses(rule: Rule, together: int, requests: int = 4000) -> float:
    """The share of requests whose replica must load their adapter first; so many are under way together."""
    chance, ends = random.Random(7), [End(number) for number in range(REPLICAS)]
    running, own = list[tuple[End, int]](), Counter[int]()
    for _ in range(requests):
        if len(running) == together:
            end, done = running.pop(chance.randrange(together))
            end.ongoing -= 1
            own[done] -= 1
        adapter, prompt = chance.randrange(ADAPTERS), chance.randrange(8)
        own[adapter] += 1
        end = rule(ends, home(adapter, own[adapter]), hash64(b"%d %d" % (adapter, prompt)))
        end.use(adapter)
        running.append((end, adapter))
    return sum(end.misses for end in ends) / requests


@pytest.mark.parametrize(("together", "most"), [(1, 0.02), (4, 0.02), (32, 0.2), (128, 0.1)])
def test_adapters_stay_where_they_are_loaded(together: int, most: float) -> None:
    """Twelve adapters a replica fit into its sixteen places; spread by prompt all 48 meet every replica."""
    assert misses(by_prompt, together) > 0.5
    assert misses(by_adapter, together) < most


@pytest.mark.parametrize("requests", [1, LIGHT])
def test_few_requests_of_an_adapter_have_one_replica(requests: int) -> None:
    ends = [End(number) for number in range(8)]
    first = near(ends, home(1))
    for _ in range(requests):
        assert near(ends, home(1, first[0].ongoing + 1)) == first
        first[0].ongoing += 1


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 1.0])
def test_an_adapter_is_as_wide_as_its_load(share: float) -> None:
    """400 requests on 8 replicas, bound 63: 40 of them need one replica, all of them seven."""
    ends = [End(number, 50) for number in range(8)]
    wide = len(near(ends, home(1, int(400 * share))))
    assert wide == {0.1: 1, 0.3: 2, 0.6: 4, 1.0: 7}[share]


@pytest.mark.parametrize("seed", range(100))
def test_nobody_is_loaded_beyond_the_bound(seed: int) -> None:
    chance = random.Random(seed)
    ends = [End(number, chance.randrange(200)) for number in range(chance.randint(1, 20))]
    most = max(LIGHT, bound(sum(end.ongoing for end in ends), len(ends)))
    found = near(ends, home(seed, chance.randint(1, 300)))
    assert found
    assert all(end.ongoing < most for end in found)


def test_a_full_home_overflows_to_the_same_next_one() -> None:
    ends = [End(number, 10) for number in range(6)]
    (first,) = near(ends, home(3))
    first.ongoing = 30
    (second,) = near(ends, home(3))
    assert second is not first
    assert near(ends[::-1], home(3)) == [second]


def test_without_a_prompt_the_least_busy_of_its_own_takes_it() -> None:
    ends = [End(number, 20) for number in range(6)]
    own = near(ends, home(2, 60))
    assert len(own) == 3
    own[1].ongoing = 5
    assert pick(ends, 0.0, 0.5, home=home(2, 60)) is own[1]


@pytest.mark.parametrize(
    ("lora", "adapters", "crowded"),
    [
        ({}, 64, False),
        ({}, 65, True),
        ({"maxCached": 2}, 2, False),
        ({"maxCached": 2}, 3, True),
        ({"maxActive": 80}, 70, False),
    ],
)
def test_which_deployments_are_crowded(lora: dict[str, int], adapters: int, crowded: bool) -> None:
    raw = world.deployment("qa", adapters=[f"bot-{number}" for number in range(adapters)])
    raw["spec"]["engine"] = {"lora": lora}
    assert parse_deployment(raw).crowded is crowded


# ---- on the wire ----

BOTS = [f"bot-{number}" for number in range(6)]


@pytest.fixture
def limits() -> Limits:
    """Without prompts' affinity, which must make no difference."""
    return Limits(prefix_bytes=0)


@pytest.fixture
async def second(server: world.ModelServer, team: world.World) -> AsyncIterator[world.ModelServer]:
    """Another replica of qa; each holds three of its six adapters."""
    found = world.ModelServer()
    async with world.listening(found.application(), server.port, "127.0.0.2"):
        qa: dict[str, Any] = world.deployment("qa", adapters=BOTS)
        qa["spec"]["engine"] = {"lora": {"maxCached": 3}}
        team.route(qa, world.endpoint_slice("qa", ["127.0.0.1", "127.0.0.2"], server.port))
        yield found


async def test_an_adapter_s_requests_meet_one_replica(
    openai: AsyncOpenAI, team: world.World, second: world.ModelServer
) -> None:
    for number in range(48):  # one after the other, so an adapter never has more than one under way
        await openai.chat.completions.create(model=BOTS[number % 6], messages=order(do="answer"))
    met = [{seen.body["model"] for seen in each.seen} for each in (team.server, second)]
    assert not met[0] & met[1]
    assert len(met[0] | met[1]) == 6
