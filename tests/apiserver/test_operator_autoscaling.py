"""Replicas by load on the real API server: asleep, woken by a held request, out, back, and no write while calm.

The gateway and the kubelet are played; its stream of load is what the contract says.
"""

from operator_api import Obj, wait_for
from operator_gateway import FakeGateway
from operator_world import Operator, World
from serving_world import all_answer, with_model


def replicas(world: World) -> int:
    return int(world.api.must("Deployment", world.namespace, "chat-r1")["spec"]["replicas"])


def wait_replicas(world: World, number: int) -> None:
    show = lambda: world.status("chat", "ModelDeployment").get("scaling")  # noqa: E731
    wait_for(f"{number} replicas", lambda: replicas(world) == number, show=show)


def answer(world: World) -> None:
    """All pods that are wanted answer."""
    found = world.api.must("Deployment", world.namespace, "chat-r1")
    all_answer(world, found, found["spec"]["replicas"])


def history(world: World) -> list[tuple[int, int]]:
    scaling: Obj = world.status("chat", "ModelDeployment").get("scaling") or {}
    return [(item.get("fromReplicas", 0), item.get("toReplicas", 0)) for item in scaling.get("history", [])]


def events(world: World) -> set[str]:
    return {item["reason"] for item in world.api.list("Event", world.namespace)}


def two_looks(operator: Operator) -> None:
    """Wait until the operator has heard from the gateway twice more."""
    looks = operator.metric("tuneloop_polls_total", target="gateway")
    wait_for("two signs of life", lambda: operator.metric("tuneloop_polls_total", target="gateway") >= looks + 2)


def test_zero_to_one_to_two_to_zero(world: World) -> None:
    operator = world.start()
    with FakeGateway(world) as gateway:
        gateway.say(requests=3)
        scaling = {"minReplicas": 0, "maxReplicas": 2, "target": {"ongoingRequests": 2}, "scaleDownDelay": "1s"}
        with_model(world, scaling=scaling)
        assert replicas(world) == 1, "the first start is seen before anybody waits for it"
        answer(world)
        wait_replicas(world, 0)
        asleep = world.wait_condition("Ready", "chat", "ScaledToZero", "ModelDeployment")
        assert asleep["message"].startswith("asleep: wakes on the first request; no key opens it")
        assert world.condition("Reconciling", "chat", "ModelDeployment") is None
        two_looks(operator)  # the Event of the last change may still be on its way
        before = operator.writes()
        gateway.say(requests=3)
        two_looks(operator)
        assert operator.writes() == before, "a calm deployment is not written to"
        gateway.say(queued=1)
        wait_replicas(world, 1)
        answer(world)
        gateway.say(ongoing=5)
        wait_replicas(world, 2)
        answer(world)
        gateway.say(ongoing=0, requests=9)
        wait_replicas(world, 0)
        wait_for("the history", lambda: history(world)[-1:] == [(2, 0)] or history(world)[-1:] == [(1, 0)])
        assert history(world)[:3] == [(1, 0), (0, 1), (1, 2)]
        wait_for("the Events", lambda: {"ScaledToZero", "Woken", "ScaledUp"} <= events(world))


def test_external_is_woken_by_a_held_request_and_the_scale_is_left_alone(world: World) -> None:
    world.start()
    with FakeGateway(world) as gateway:
        gateway.say(requests=0)
        with_model(world, scaling={"mode": "External", "replicas": 0, "scaleDownDelay": "1s"})
        assert replicas(world) == 0
        gateway.say(queued=1)
        wait_replicas(world, 1)
        assert world.api.must("ModelDeployment", world.namespace, "chat")["spec"]["scaling"]["replicas"] == 0
        world.api.patch("ModelDeployment", world.namespace, "chat", {"spec": {"replicas": 3}}, "scale")
        wait_replicas(world, 3)
        gateway.say(queued=0)
        world.api.patch("ModelDeployment", world.namespace, "chat", {"spec": {"replicas": 0}}, "scale")
        wait_replicas(world, 0)


def test_a_schedule_that_cannot_be_read_is_told_and_the_rest_serves(world: World) -> None:
    world.start()
    bad = {"cron": "0 25 * * *", "duration": "1h", "minReplicas": 2}
    with_model(world, scaling={"minReplicas": 1, "schedules": [bad]})
    answer(world)
    stalled = world.wait_condition("Stalled", "chat", "InvalidSpec", "ModelDeployment")
    assert stalled["message"].startswith("spec.scaling.schedules[0]: cron '0 25 * * *': Bad hour")
    assert replicas(world) == 1
