"""Latency as users felt it: of a window, of one name, and of nobody that had the name before."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from serving_facts import NOW

from tuneloop_core.api.modeldeployment_status import LatencyStatus, ModelLatency
from tuneloop_core.serving import DeploymentLoad, GatewayLoad, Histogram, ModelLoad
from tuneloop_operator.names import Key
from tuneloop_operator.policy import latency
from tuneloop_operator.reconcile.cache import Cache
from tuneloop_operator.reconcile.engine import Engine
from tuneloop_operator.reconcile.gateways import Gateways, Heard

KEY = Key("ModelDeployment", "team", "chat")


def load(count: int, started: str = "a", **more: Any) -> DeploymentLoad:
    ttft = Histogram(bounds=[0.1, 0.2, 0.4], counts=[count, 2 * count, 2 * count, 2 * count], sum=1.0)
    return DeploymentLoad(namespace="team", name="chat", requests=2 * count, completion_tokens=100 * count, ttft=ttft)


def test_latency_and_attainment_by_model() -> None:
    def model(name: str, count: int, engine_name: str = "", met: int = 0) -> ModelLoad:
        ttft = Histogram(bounds=[0.1, 0.2], counts=[count, count, count], sum=1.0)
        return ModelLoad(name=name, engine_name=engine_name, requests=count, ttft=ttft, slo_met=met, slo_missed=count)

    def loads(*models: ModelLoad) -> dict[str, DeploymentLoad]:
        return {"g": load(sum(each.requests for each in models)).model_copy(update={"models": list(models)})}

    before = loads(model("chat", 10, met=10), model("bot", 5, "bot@1"))
    after = loads(model("chat", 20, met=40), model("bot", 5, "bot@1"), model("bot", 30, "bot@2"), model("idle", 0))
    found = latency.window(before, after, 60.0, NOW)
    assert found is not None
    assert [(each.name, each.requests, each.ttft_p99, each.slo_attainment) for each in found.models] == [
        ("bot", 30, "99ms", 0.0),
        ("chat", 10, "99ms", 0.75),
    ]
    assert (found.ttft_p99, found.slo_attainment) == ("198ms", None)
    assert latency.moved(found.model_copy(update={"models": []}), found)


@pytest.mark.parametrize(
    ("serving", "names"),
    [
        ("", {"g"}),
        ("r1", {"g/chat//", "g/bot/bot@1/", "g/bot/bot@1/r1"}),
        ("r2", {"g/chat//", "g/bot/bot@1/", "g/chat//r2"}),
    ],
)
def test_what_was_measured_of_one_revision(serving: str, names: set[str]) -> None:
    models = [ModelLoad(name="chat"), ModelLoad(name="chat", revision="r2")]
    models += [ModelLoad(name="bot", engine_name="bot@1", revision=revision) for revision in ("", "r1")]
    loads = {"g": load(1).model_copy(update={"models": models})}
    assert set(latency.of_revision(loads, serving)) == names


def test_latency_is_of_the_window_only() -> None:
    found = latency.window({"g": load(10)}, {"g": load(20), "h": load(5)}, 60.0, NOW)
    assert found is not None
    assert (found.requests, found.requests_per_minute, found.tokens_per_second) == (30, 30.0, 25.0)
    assert found.ttft_p50 == "100ms"
    assert found.ttft_p95 == "190ms"
    assert found.tpot_p50 is None
    assert latency.window({"g": load(10)}, {"g": load(10)}, 60.0, NOW) is None


def test_a_restarted_gateway_counts_from_zero() -> None:
    found = latency.window({"g": load(10)}, {"g": load(3)}, 60.0, NOW)
    assert found is not None
    assert found.requests == 6


def test_quantiles_above_the_last_bound_are_that_bound() -> None:
    histogram = Histogram(bounds=[0.1, 0.2], counts=[0, 0, 4], sum=9.0)
    assert latency.quantile(0.5, histogram) == 0.2
    assert latency.quantile(0.5, Histogram(bounds=[0.1], counts=[0, 0])) is None


def test_latency_is_written_when_it_moved_by_a_tenth() -> None:
    old = LatencyStatus(ttft_p50="100ms", requests_per_minute=10, tokens_per_second=10)
    assert not latency.moved(old, old.model_copy(update={"ttft_p50": "109ms"}))
    assert latency.moved(old, old.model_copy(update={"ttft_p50": "120ms"}))
    assert latency.moved(None, old)


def test_latency_of_one_name_that_moved_is_written_though_the_sum_holds() -> None:
    def status(bot: str) -> LatencyStatus:
        models = [ModelLatency(name="bot", requests=1, ttft_p95=bot), ModelLatency(name="chat", ttft_p95="50ms")]
        return LatencyStatus(ttft_p95="50ms", requests_per_minute=100, tokens_per_second=10, models=models)

    assert latency.moved(status("100ms"), status("200ms"))
    assert not latency.moved(status("100ms"), status("105ms"))
    other_order = status("100ms")
    other_order.models.reverse()
    assert not latency.moved(status("100ms"), other_order)


class Told:
    """Gateways that were heard, and when their windows close."""

    def __init__(self) -> None:
        self.woken: list[Key] = []
        unused = cast(Any, None)
        self.gateways = Gateways(unused, unused, unused, self.woken.append)

    def say(self, count: int, at: float) -> None:
        said = GatewayLoad(instance="g", started="1", deployments=[load(count)])
        self.gateways._heard["10.0.0.9"] = Heard.now(said)
        self.gateways._round(at)


def test_one_made_again_under_the_name_does_not_show_what_the_one_before_it_had() -> None:
    told = Told()
    told.say(10, 0.0)
    told.say(20, 60.0)
    assert told.woken == [KEY]
    assert told.gateways.latency(KEY) is not None
    told.say(30, 90.0)
    told.gateways.forget(KEY)
    assert told.gateways.latency(KEY) is None
    told.say(30, 120.0)
    assert told.gateways.latency(KEY) is None, "nothing was asked since"
    told.say(35, 180.0)
    found = told.gateways.latency(KEY)
    assert found is not None
    assert found.requests == 10, "its own"


class Remembering:
    """A reconciler, and polls, that say when they are to forget."""

    def __init__(self) -> None:
        self.forgotten: list[Key] = []

    def forget(self, key: Key) -> None:
        self.forgotten.append(key)

    async def reconcile(self, key: Key, obj: Any) -> None:
        return None


async def test_what_was_kept_of_a_name_is_forgotten_though_nobody_looked_between_delete_and_create() -> None:
    def made(uid: str, version: str) -> Any:
        metadata = {"name": "chat", "namespace": "team", "uid": uid, "resourceVersion": version}
        return {"kind": "ModelDeployment", "metadata": metadata}

    reconciler, settings = Remembering(), SimpleNamespace(resync_seconds=1000.0)
    world = SimpleNamespace(cache=Cache(), polls=Remembering(), settings=settings)
    engine = Engine(cast(Any, world), reconciler, reconciler, lambda _: None)
    for uid, version, forgotten in [("a", "1", 1), ("a", "2", 1), ("b", "3", 2), ("b", "4", 2)]:
        world.cache.put(made(uid, version))
        await engine.process(KEY)
        assert len(reconciler.forgotten) == forgotten, (uid, version)
