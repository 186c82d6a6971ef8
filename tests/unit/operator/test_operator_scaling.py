"""The scaler beside the reconciles: what it makes of what gateways and engines say; and what the status tells."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from tuneloop_core.api.modeldeployment_status import ScalingStatus
from tuneloop_core.api.scaling import Scaling, ServiceLevel
from tuneloop_core.serving import DeploymentLoad, GatewayLoad, Histogram, ModelLoad
from tuneloop_operator.names import Key
from tuneloop_operator.policy.autoscale import UNANSWERED
from tuneloop_operator.policy.enginemetrics import EngineGauges, parse, together
from tuneloop_operator.policy.latency import merged
from tuneloop_operator.policy.revisions import current_replicas, never_answered
from tuneloop_operator.policy.scalingstatus import HISTORY_KEPT, scaling_notes, scaling_status
from tuneloop_operator.policy.serving import ready_addresses, ready_beside
from tuneloop_operator.reconcile.gateways import Gateways, Heard
from tuneloop_operator.reconcile.scaling import Scaler, Wish, felt_since, sample

NOW = datetime(2026, 11, 23, tzinfo=UTC)
KEY = Key("ModelDeployment", "team", "chat")
PAGE = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",reason="x"} 99.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
"""


def load(**fields: Any) -> GatewayLoad:
    return GatewayLoad(instance="g", started="1", deployments=[DeploymentLoad(namespace="team", name="chat", **fields)])


class Pods:
    """Gateways and engines that say nothing by themselves."""

    async def gateway_loads(self, _: str) -> AsyncIterator[GatewayLoad]:
        return
        yield load()

    async def engine_metrics(self, _namespace: str, _ip: str) -> str:
        return PAGE


class World:
    """A scaler over gateways that are fed by hand."""

    def __init__(self) -> None:
        self.woken: list[Key] = []
        unused = cast(Any, None)
        self.gateways = Gateways(unused, cast(Any, Pods()), unused, self.woken.append)
        self.scaler = Scaler(self.gateways, cast(Any, Pods()), self.woken.append)

    def say(self, told: GatewayLoad) -> None:
        self.gateways._streams.setdefault("10.0.0.9", cast(Any, None))
        self.gateways._heard["10.0.0.9"] = Heard.now(told)
        self.gateways.on_load(told)

    def wanted(self, current: int, **scaling: Any) -> int:
        return self.scaler.wanted(KEY, Wish(Scaling.model_validate(scaling), None, current)).replicas


def test_a_held_request_wakes_a_sleeping_deployment_at_once() -> None:
    world = World()
    assert world.wanted(0, minReplicas=0) == 0
    world.say(load(queued=0, requests=7))
    assert world.woken == []
    world.say(load(queued=1, unserved_seconds=0.1))
    assert world.woken == [KEY]
    assert world.wanted(0, minReplicas=0) == 1
    world.say(load(queued=2))
    assert world.woken == [KEY], "one wake is enough"


def test_external_is_woken_too_and_returns_to_what_the_scale_says() -> None:
    world = World()
    assert world.wanted(0, mode="External", replicas=0) == 0
    world.say(load(queued=1))
    assert world.woken == [KEY]
    assert world.wanted(0, mode="External", replicas=0) == 1
    assert world.wanted(1, mode="External", replicas=4) == 4


def test_a_changed_spec_counts_at_once_but_nothing_known_takes_nothing_away() -> None:
    world = World()
    assert world.wanted(3, minReplicas=1, maxReplicas=5) == 3
    assert world.wanted(3, minReplicas=4, maxReplicas=5) == 4
    assert world.wanted(4, minReplicas=1, maxReplicas=2) == 2
    world.scaler.forget(KEY)
    assert world.wanted(1, minReplicas=1) == 1


def test_a_deployment_that_never_answered_keeps_its_first_replica() -> None:
    world = World()
    scaling = Scaling.model_validate({"minReplicas": 0, "scaleDownDelay": "0s"})
    world.say(load())
    watched = world.scaler
    assert watched.wanted(KEY, Wish(scaling, None, 1, fresh=True)).replicas == 1
    watched._look(KEY, watched._watched[KEY], 10.0)
    assert watched.wanted(KEY, Wish(scaling, None, 1, fresh=True)).replicas == 1
    assert watched.wanted(KEY, Wish(scaling, None, 1)).replicas == 0


@pytest.mark.parametrize(
    ("least", "current", "replicas", "words"),
    [
        (0, 1, 1, "it has not answered yet: one replica is wanted until it has"),
        (2, 2, 2, "minReplicas is 2"),
        (0, 3, 3, "not every gateway says what it has in progress: nothing is taken away"),
    ],
)
@pytest.mark.parametrize("heard", [False, True])
def test_what_is_said_of_a_deployment_that_never_answered(
    least: int, current: int, replicas: int, words: str, heard: bool
) -> None:
    world, scaling = World(), Scaling(min_replicas=least, max_replicas=4)
    if heard:
        world.say(load())
    world.scaler.wanted(KEY, Wish(scaling, None, current, fresh=True))
    world.scaler._look(KEY, world.scaler._watched[KEY], 10.0)
    found = world.scaler.wanted(KEY, Wish(scaling, None, current, fresh=True))
    assert found.replicas == replicas
    if not heard or current < 3:
        assert found.reason == words


async def test_engines_are_asked_while_there_is_load() -> None:
    world = World()
    world.wanted(2, minReplicas=1, maxReplicas=9)
    world.scaler.ready(KEY, ["10.0.0.2", "10.0.0.1"])
    watched = world.scaler._watched[KEY]
    world.scaler._look(KEY, watched, 100.0)
    assert not world.scaler._asking, "a calm engine is left alone"
    world.say(load(ongoing=1))
    world.scaler._look(KEY, watched, 101.0)
    for task in list(world.scaler._asking):
        await task
    assert [(each.running, each.waiting, each.kv_cache) for each in watched.engines] == [(10.0, 8.0, 0.75)]
    world.scaler.ready(KEY, ["10.0.0.1"])
    assert not watched.engines, "numbers of other replicas say nothing of these"


def revision_pod(revision: str, ip: str, *, ready: bool = True) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": str(ready)}]
    labels = {"tuneloop.dev/revision": revision}
    return {"metadata": {"labels": labels}, "status": {"podIP": ip, "conditions": conditions}}


STABLE, CANARY = revision_pod("r1", "10.0.0.1"), revision_pod("r2", "10.0.0.2")


@pytest.mark.parametrize(
    ("pods", "serving", "beside"),
    [
        ([STABLE], "", 0),
        ([STABLE, CANARY], "r1", 1),
        ([CANARY], "r1", 1),
        ([STABLE, CANARY, revision_pod("r2", "10.0.0.3")], "", 1),  # one succeeds the other, each with all replicas
        ([STABLE, revision_pod("r2", "10.0.0.3", ready=False)], "r1", 0),
        ([], "", 0),
    ],
)
def test_which_replicas_are_beside_those_that_are_sized(pods: list[Any], serving: str, beside: int) -> None:
    assert ready_beside(pods, serving) == beside


@pytest.mark.parametrize("pods", [[STABLE], [STABLE, CANARY]])
def test_a_canary_near_the_promise_is_no_reason_for_more(pods: list[Any]) -> None:
    world, slo = World(), ServiceLevel(ttft_p95="500ms")
    wish = Wish(Scaling(min_replicas=1, max_replicas=8), slo, 1)
    world.scaler.wanted(KEY, wish)
    watched = world.scaler._watched[KEY]
    watched.asked = float("inf")  # what the engines say is another matter
    found = [world.scaler.wanted(KEY, wish).replicas]
    for look in range(30):
        world.scaler.ready(KEY, ready_addresses(pods), ready_beside(pods, "r1"))
        watched.changed = float("-inf")
        ended = 40 * look
        felt = Histogram(bounds=[0.4, 0.42], counts=[0, ended, ended], sum=0.4 * ended)  # at 80 % of the promise
        world.say(load(ongoing=4, requests=ended, ttft=felt))
        world.scaler._look(KEY, watched, 10_000.0 + 5 * look)
        found.append(watched.state.replicas)
    assert watched.snapshots, "the promise was looked at"
    assert set(found) == {1}


def by_revision(ended: int, **seconds: float) -> GatewayLoad:
    """All that ended so far, one half by each of two revisions, with TTFT as given; "" is the one that serves."""
    models = [
        ModelLoad(name="chat", revision=revision.strip("_"), requests=ended, ttft=all_at(second, ended))
        for revision, second in seconds.items()
    ]
    both = [each.ttft for each in models]
    return load(ongoing=4, requests=2 * ended, ttft=merged(both), models=models)


def all_at(second: float, count: int) -> Histogram:
    bounds = [0.1, 0.2, 0.45, 0.5, 1.0, 2.0]
    return Histogram(bounds=bounds, counts=[count if second <= bound else 0 for bound in bounds] + [count])


@pytest.mark.parametrize(
    ("stable", "canary", "replicas"),
    [
        pytest.param(0.1, 0.1, 1, id="both keep the promise"),
        pytest.param(0.1, 2.0, 1, id="only the canary breaks it: it is judged, and sizes nothing"),
        pytest.param(2.0, 0.1, 2, id="only the one that serves breaks it"),
        pytest.param(2.0, 2.0, 2, id="both do"),
    ],
)
def test_the_size_follows_from_what_the_revision_that_serves_did(stable: float, canary: float, replicas: int) -> None:
    world, slo = World(), ServiceLevel(ttft_p95="500ms")
    wish = Wish(Scaling(min_replicas=1, max_replicas=8), slo, 1)
    world.scaler.wanted(KEY, wish)
    watched = world.scaler._watched[KEY]
    watched.asked = float("inf")
    for look in range(12):
        world.scaler.ready(KEY, ["10.0.0.1", "10.0.0.2"], 1, "r1")
        watched.changed = float("-inf")
        world.say(by_revision(40 * look, _=stable, r2=canary))
        world.scaler._look(KEY, watched, 10_000.0 + 5 * look)
    assert watched.state.replicas == replicas


def test_gateways_that_are_not_heard_are_told() -> None:
    world = World()
    assert not world.gateways.complete(), "no gateway at all"
    world.say(load(ongoing=2))
    assert world.gateways.complete()
    assert world.gateways.loads(KEY)["g/1"].ongoing == 2
    world.gateways._streams["10.0.0.10"] = cast(Any, None)
    assert not world.gateways.complete(), "the second has not spoken yet"


def test_sample_sums_gateways_and_counts_what_ended_since() -> None:
    loads = {"a": load(ongoing=2, queued=1, requests=10).deployments[0], "b": load(requests=5).deployments[0]}
    found = sample(1.0, loads, {"a": 7}, complete=True)
    assert (found.ongoing, found.queued, found.ended) == (2, 1, 3)


def test_felt_is_between_the_snapshots_since() -> None:
    def snapshot(slow: int) -> dict[str, DeploymentLoad]:
        ttft = Histogram(bounds=[0.1, 1.0], counts=[0, slow, slow])
        return {"a": load(requests=slow, ttft=ttft).deployments[0]}

    found = felt_since([(1.0, snapshot(100)), (50.0, snapshot(100)), (60.0, snapshot(140))], 40.0)
    assert (found.requests, found.tpot_p95) == (40, None)
    assert found.ttft_p95 == pytest.approx(0.955)
    assert felt_since([(1.0, snapshot(9))], 0.0).requests == 0
    assert ServiceLevel().ttft_p95 is None


def test_engine_page() -> None:
    assert parse(PAGE) == EngineGauges(5.0, 4.0, 0.75)
    assert parse("") is None
    assert parse(PAGE.replace("4.0", "four")) is None
    assert together(1.0, []) is None


def test_status_changes_with_the_number_only_and_keeps_ten() -> None:
    first = scaling_status(None, 1, "minReplicas is 1", NOW)
    assert (first.desired, first.reason, first.history) == (1, "minReplicas is 1", [])
    assert scaling_status(first, 1, "3.2 requests", NOW) is first
    waiting = scaling_status(None, 1, UNANSWERED, NOW)
    over = scaling_status(waiting, 1, "3.2 requests", NOW)
    assert (over.desired, over.reason, over.history) == (1, "3.2 requests", []), "it has answered since"
    found: ScalingStatus = first
    for number in range(2, 20):
        found = scaling_status(found, number, f"for {number}", NOW)
    assert len(found.history) == HISTORY_KEPT
    last = found.history[-1]
    assert (last.from_replicas, last.to_replicas, last.message) == (18, 19, "for 19")


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [(0, 1, "Woken"), (1, 3, "ScaledUp"), (3, 1, "ScaledDown"), (1, 0, "ScaledToZero")],
)
def test_one_event_a_change(before: int, after: int, reason: str) -> None:
    old = ScalingStatus(desired=before, reason="x")
    notes = scaling_notes(old, ScalingStatus(desired=after, reason="why"))
    assert [(note.reason, note.message) for note in notes] == [(reason, f"from {before} to {after} replicas: why")]
    assert scaling_notes(old, old) == []
    assert scaling_notes(None, old) == []


def test_replicas_to_begin_with() -> None:
    asleep, external = Scaling(min_replicas=0), Scaling(mode="External", replicas=0)
    assert current_replicas({}, asleep) == 1
    assert current_replicas({}, external) == 0
    assert current_replicas({1: {"spec": {"replicas": 4}}, 2: {"spec": {"replicas": 2}}}, asleep) == 2


@pytest.mark.parametrize(
    ("replicas", "ready", "reason", "fresh"),
    [
        (1, 0, "ReplicaSetUpdated", True),
        (1, 1, "ReplicaSetUpdated", False),
        (0, 0, "", False),
        (1, 0, "NewReplicaSetAvailable", False),
    ],
)
def test_never_answered(replicas: int, ready: int, reason: str, fresh: bool) -> None:
    conditions = [{"type": "Progressing", "reason": reason}]
    found = {"spec": {"replicas": replicas}, "status": {"readyReplicas": ready, "conditions": conditions}}
    assert never_answered(found) == fresh
