"""New versions that are worse, or cannot be: what rolls them back, and what the one before does meanwhile."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from operator_api import Obj, wait_for
from operator_world import World, container, now
from rollout_world import (
    AnsweringServer,
    Traffic,
    condition,
    name_job,
    publish,
    rollout,
    serve,
    start_pod,
    wait_rollout,
)
from serving_world import all_answer, make_pod, wait_deployment, wait_ready

CANARY: Obj = {"steps": [10], "interval": "30m", "minRequests": 10, "maxDuration": "2h"}
ENGINE_WORDS = "the engine could not load this model: ValueError: To serve at least one request, 3.5 GiB KV cache"
FIRST_IP, SECOND_IP = "127.0.0.22", "127.0.0.14"  # of this file alone: others run beside it


@pytest.fixture
def server() -> Iterator[AnsweringServer]:
    with AnsweringServer(FIRST_IP) as made:
        yield made


def change_engine(world: World, length: int, **rollout_spec: Any) -> None:
    spec: Obj = {"engine": {"maxModelLength": length}}
    if rollout_spec:
        spec["rollout"] = rollout_spec
    world.api.patch("ModelDeployment", world.namespace, "chat", {"spec": spec})


def replicas(world: World, name: str) -> int:
    found = world.api.get("Deployment", world.namespace, name)
    return int(found["spec"]["replicas"]) if found else -1


def crash(world: World, found: Obj, ended: Obj) -> None:
    """A pod of this Deployment that ended twice, with these last words, and is waited with."""
    pod = make_pod(world, found, "crash")
    last = {"terminated": {"exitCode": 1, "reason": "Error", "startedAt": now(), "finishedAt": now(), **ended}}
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s restarting failed container"}}
    status = container(pod, waiting) | {"lastState": last, "restartCount": 2}
    world.pod_status(pod, {"phase": "Running", "podIP": SECOND_IP, "containerStatuses": [status]})


def stream_until_rolled_back(world: World, traffic: Traffic) -> Obj:
    def probe() -> Obj | None:
        found = rollout(world)
        if found["phase"] == "RolledBack":
            return found
        assert set(traffic.stream("bot", 220)) == {200}
        return None

    what = "the slow version to be rolled back"
    return dict(wait_for(what, probe, timeout=180, show=lambda: world.status("chat", "ModelDeployment")))


def test_a_version_that_is_slow_to_begin_or_to_go_on_is_rolled_back(
    world: World, server: AnsweringServer, traffic: Traffic
) -> None:
    world.start()
    for job, letter in (("first", "a"), ("late", "b"), ("slow", "c")):
        publish(world, job, letter)
    serve(world, server, CANARY)
    wait_for("the gateway to list it", lambda: "bot" in traffic.models())
    for job, letter, slow, reason in (("late", "b", (0.4, 0.0), "TTFT"), ("slow", "c", (0.0, 0.4), "TPOT")):
        server.slow = {f"bot@{letter * 12}": slow}
        name_job(world, job)
        wait_rollout(world, f"{job} to take its share", canary=letter * 12, phase="Canary", weight=10)
        found = stream_until_rolled_back(world, traffic)
        assert (found["reason"], found["canary"], found["weight"]) == (reason, letter * 12, 0)
        assert f"limits.{reason.lower()}Ratio is 1." in found["message"]
        assert found["measured"]["canary"]["errors"] == 0
        wait_for("it to be unloaded", lambda: server.loaded() == ["bot@" + "a" * 12], show=server.loaded)
        assert condition(world, "Ready")["status"] == "True", "the old version serves"
    assert {item["reason"] for item in world.status("chat", "ModelDeployment")["rejected"]} == {"TTFT", "TPOT"}


def test_recreate_stops_the_old_pods_first_and_requests_wait(
    world: World, server: AnsweringServer, traffic: Traffic
) -> None:
    world.start()
    publish(world, "first", "a")
    serve(world, server, None)
    wait_for("the gateway to answer", lambda: set(traffic.send("chat", 1)) == {200})
    world.api.patch("ModelDeployment", world.namespace, "chat", {"spec": {"rollout": {"strategy": "Recreate"}}})
    change_engine(world, 2048)
    found = wait_deployment(world, "chat-r2")
    assert world.api.get("Deployment", world.namespace, "chat-r1") is None, "r1 went before r2 came"
    world.api.delete("Pod", world.namespace, "chat-r1-5d5f-x")
    world.api.delete("EndpointSlice", world.namespace, f"chat-server-{server.port}")
    wait_for("the pod of r1 to be gone from the status", lambda: not ready_replicas(world))
    assert condition(world, "Ready")["status"] == "False"
    with AnsweringServer(SECOND_IP) as second, ThreadPoolExecutor(1) as pool:
        held = pool.submit(traffic.send, "chat", 3)
        wait_for("the request to be held", lambda: not held.done())
        start_pod(world, found, second)
        assert held.result(timeout=90) == [200] * 3
        wait_ready(world)
        assert second.answers
    assert [item["name"] for item in world.status("chat", "ModelDeployment")["revisions"]] == ["r2"]


def ready_replicas(world: World) -> int:
    return int(world.status("chat", "ModelDeployment").get("readyReplicas") or 0)


def test_a_revision_that_cannot_load_is_told_in_the_engines_words_while_the_old_one_serves(
    world: World, server: AnsweringServer, traffic: Traffic
) -> None:
    world.start()
    publish(world, "first", "a")
    serve(world, server, None, scaling={"mode": "External", "replicas": 1})
    wait_for("the gateway to answer", lambda: set(traffic.send("chat", 1)) == {200})
    change_engine(world, 2048)
    crash(world, wait_deployment(world, "chat-r2"), {"message": ENGINE_WORDS})
    stalled = world.wait_condition("Stalled", "chat", "CrashLooping", "ModelDeployment")
    assert stalled["message"].startswith("r2: the container ends again and again")
    assert f"{ENGINE_WORDS}. Correct spec.model, spec.engine or spec.pod" in stalled["message"]
    assert stalled["message"].endswith("kubectl logs chat-r2-crash --previous. r1 serves meanwhile")
    assert set(traffic.send("chat", 10)) == {200}

    # Asleep and awake again: what has never answered does not take the place of what has.
    scale(world, 0)
    wait_for("both to sleep", lambda: (replicas(world, "chat-r1"), replicas(world, "chat-r2")) == (0, 0))
    scale(world, 1)
    wait_for("both to wake", lambda: (replicas(world, "chat-r1"), replicas(world, "chat-r2")) == (1, 1))
    world.wait_condition("Stalled", "chat", "CrashLooping", "ModelDeployment")

    # The spec that worked comes back: so does its revision, which never went, and the other goes.
    uid = wait_deployment(world, "chat-r1")["metadata"]["uid"]
    change_engine(world, 4096)
    wait_for("r2 to go, which has the room of r1's pods", lambda: replicas(world, "chat-r2") == -1)
    awake(world, "chat-r1")
    world.api.delete("Pod", world.namespace, "chat-r2-crash")
    wait_ready(world)
    assert set(traffic.send("chat", 10)) == {200}
    assert wait_deployment(world, "chat-r1")["metadata"]["uid"] == uid
    assert replicas(world, "chat-r3") == -1, "nothing was made anew"


def awake(world: World, name: str) -> None:
    """The Deployment controller has seen its latest size, and its pod answers."""
    all_answer(world, wait_deployment(world, name), 1)


def scale(world: World, count: int) -> None:
    world.api.patch("ModelDeployment", world.namespace, "chat", {"spec": {"replicas": count}}, "scale")


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        ({"message": ENGINE_WORDS}, ENGINE_WORDS),
        ({"reason": "OOMKilled", "exitCode": 137}, "the container was killed for memory"),
    ],
    ids=["refused", "killed for memory"],
)
def test_a_canary_that_cannot_load_is_rolled_back_in_words(
    world: World, server: AnsweringServer, ended: Obj, words: str
) -> None:
    world.start()
    publish(world, "first", "a")
    serve(world, server, CANARY)
    change_engine(world, 2048)
    crash(world, wait_deployment(world, "chat-r2"), ended)
    found = wait_rollout(world, "r2 to be rolled back", phase="RolledBack", canary="r2", reason="CanaryNotLoaded")
    assert words in found["message"]
    stalled = world.wait_condition("Stalled", "chat", "RolledBack", "ModelDeployment")
    assert words in stalled["message"]
    assert condition(world, "Ready")["status"] == "True", "r1 serves"
    wait_for("r2 to go", lambda: world.api.get("Deployment", world.namespace, "chat-r2") is None)

    # The spec is set back, and only then the strategy is another: what serves goes on.
    serving = wait_deployment(world, "chat-r1")["metadata"]
    change_engine(world, 4096)
    wait_for("Stalled to go", lambda: not condition(world, "Stalled"))
    for strategy in ("RollingUpdate", "Recreate"):
        patch = {"rollout": {"strategy": strategy, "canary": None}}
        changed = world.api.patch("ModelDeployment", world.namespace, "chat", {"spec": patch})["metadata"]["generation"]
        wait_for(f"{strategy} to be seen", lambda wanted=changed: observed(world) == wanted)
        assert wait_deployment(world, "chat-r1")["metadata"]["uid"] == serving["uid"]
        assert [each["metadata"]["name"] for each in world.api.list("Deployment", world.namespace)] == ["chat-r1"]
        assert condition(world, "Ready")["status"] == "True"


def observed(world: World) -> int:
    return int(world.status("chat", "ModelDeployment")["observedGeneration"])
