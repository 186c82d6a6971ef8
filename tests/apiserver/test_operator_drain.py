"""A pod that leaves and keeps the only room: its streams go on while nobody waits, and no longer than a hold."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from operator_api import Obj, wait_for
from operator_world import World
from rollout_world import AnsweringServer, Traffic, condition, publish, serve, start_pod
from serving_world import make_pod, wait_deployment, wait_ready

FIRST_IP, SECOND_IP = "127.0.0.23", "127.0.0.24"  # of this file alone: others run beside it
OLD = "chat-r1-5d5f-x"
DRAIN = 610  # seconds, by the chart's defaults
HOLD = {"hold": {"maxSeconds": 40}}  # so that one may wait 10 s for room: half is for a start, 10 s for the change


@pytest.fixture
def world(world: World) -> World:
    world.settings["gateway"] = HOLD
    return world


def left(world: World) -> int:
    """Seconds that the old pod has been given to leave."""
    return int(world.api.must("Pod", world.namespace, OLD)["metadata"].get("deletionGracePeriodSeconds", 0))


def no_room(world: World, pod: Obj) -> None:
    words = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    found = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
    world.pod_status(pod, {"phase": "Pending", "conditions": [found]})


def test_a_held_request_is_waited_for_by_no_stream_for_longer_than_it_is_held(world: World, traffic: Traffic) -> None:
    world.start()
    publish(world, "first", "a")
    with AnsweringServer(FIRST_IP) as first:
        serve(world, first, None, node="node-1")
        wait_for("the gateway to answer", lambda: set(traffic.send("chat", 1)) == {200})
        spec: Obj = {"engine": {"maxModelLength": 2048}, "rollout": {"strategy": "Recreate"}}
        world.api.patch("ModelDeployment", world.namespace, "chat", {"spec": spec})
        found = wait_deployment(world, "chat-r2")
        world.api.delete("Pod", world.namespace, OLD, grace=None)  # as the ReplicaSet's end does
        world.api.delete("EndpointSlice", world.namespace, f"chat-server-{first.port}")
        pod = make_pod(world, found)
        no_room(world, pod)

        def told() -> bool:
            return f"{OLD} leaves and keeps its room" in condition(world, "Reconciling").get("message", "")

        wait_for("words about the room", told, show=lambda: condition(world, "Reconciling"))
        assert left(world) == DRAIN, "nobody waits: its streams have the chart's time"

        with ThreadPoolExecutor(1) as pool, AnsweringServer(SECOND_IP) as second:
            held = pool.submit(traffic.send, "chat", 1)
            wait_for("it to be ended", lambda: left(world) == 1, show=lambda: left(world))
            assert not held.done()
            world.api.delete("Pod", world.namespace, OLD)
            start_pod(world, found, second, pod)
            assert held.result(timeout=90) == [200]
            wait_ready(world)
