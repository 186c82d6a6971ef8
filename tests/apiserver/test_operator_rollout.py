"""Canaries on the real API server: the real operator, a real gateway process, and traffic that decides."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from operator_api import Obj, wait_for
from operator_world import FETCHED, World
from rollout_world import (
    AnsweringServer,
    LoadingServer,
    Traffic,
    condition,
    name_job,
    promote,
    publish,
    rollout,
    serve,
    start_pod,
    wait_rollout,
)
from serving_world import fetch_model, wait_deployment

CANARY: Obj = {
    "steps": [50],
    "interval": "1s",
    "minRequests": 10,
    "maxDuration": "30m",
    "limits": {"ttftRatio": "1000", "tpotRatio": "1000"},
}
OLD, BAD, NEW = "a" * 12, "b" * 12, "c" * 12


@pytest.fixture
def server() -> Iterator[AnsweringServer]:
    with AnsweringServer("127.0.0.12") as made:
        yield made


def drive(world: World, traffic: Traffic, what: str, score: Any = None, **wanted: Any) -> Obj:
    """Traffic until the rollout is as wanted."""

    def probe() -> Obj | None:
        found = rollout(world)
        if wanted.items() <= found.items():
            return found
        traffic.send("bot", 40, score)
        return None

    return dict(wait_for(what, probe, timeout=180, show=lambda: world.status("chat", "ModelDeployment")))


def test_versions_of_an_adapter(world: World, server: AnsweringServer, traffic: Traffic) -> None:
    operator = world.start()
    for job, letter in (("first", "a"), ("bad", "b"), ("better", "c")):
        publish(world, job, letter)
    serve(world, server, CANARY)
    wait_for("the gateway to list it", lambda: "bot" in traffic.models())
    assert not rollout(world), "the first version has nothing to be compared with"

    # A version that fails: loaded beside the old one, rolled back by its errors, and not tried again.
    server.broken = {f"bot@{BAD}"}
    name_job(world, "bad")
    found = drive(world, traffic, "the bad version to be rolled back", phase="RolledBack")
    assert (found["kind"], found["stable"], found["canary"]) == ("Adapter", OLD, BAD)
    assert (found["weight"], found["reason"]) == (0, "ErrorRate")
    stalled = world.wait_condition("Stalled", "chat", "RolledBack", "ModelDeployment")
    assert f"{BAD} was rolled back, {OLD} serves" in stalled["message"]
    assert condition(world, "Ready")["status"] == "True", "the old version serves"
    wait_for("the bad version to be unloaded", lambda: server.loaded() == [f"bot@{OLD}"], show=server.loaded)
    server.answers.clear()
    assert set(traffic.send("bot", 40)) == {200}
    assert set(server.answers) == {f"bot@{OLD}"}

    # A better version, through a restart of the operator; promoted, and the old one freed.
    name_job(world, "better")
    wait_rollout(world, "the better version to take its share", canary=NEW, phase="Canary", weight=50)
    served = world.status("chat", "ModelDeployment")["models"]
    assert served[1]["engineName"] == f"bot@{OLD}"
    assert served[1]["canary"] == {"engineName": f"bot@{NEW}", "revision": "", "weight": 50}
    assert condition(world, "Reconciling")["reason"] == "Canary"
    assert operator.end() == 0
    world.start()
    codes: list[int] = []
    drive(world, traffic, "the better version to be promoted", phase="Promoted", canary=NEW, weight=100)
    wait_for("the old version to be freed", lambda: server.loaded() == [f"bot@{NEW}"], show=server.loaded)
    codes += traffic.send("bot", 10)
    assert set(codes) == {200}
    status = world.status("chat", "ModelDeployment")
    assert status["adapters"][0]["digest"] == "sha256:" + "c" * 64
    assert condition(world, "Stalled") == {}

    # Feedback that drops.
    server.broken = set()
    world.api.patch("ModelDeployment", world.namespace, "chat", {"spec": {"rollout": {"canary": {"interval": "30m"}}}})
    name_job(world, "bad")
    found = drive(
        world, traffic, "feedback to roll it back", lambda version: 0 if BAD in version else 1, phase="RolledBack"
    )
    assert (found["reason"], found["canary"]) == ("Feedback", BAD)
    assert found["measured"]["canary"]["badFeedback"] >= 10

    # By hand.
    promote(world, "0123456789ab")
    wrong = wait_for("words about the wrong version", lambda: condition(world, "RolloutByHand"))
    assert "tuneloop.dev/promote names '0123456789ab', which is no version here" in wrong["message"]
    promote(world, BAD)
    wait_rollout(world, "the promotion by hand", canary=BAD, phase="Promoted")
    events = {event["reason"] for event in world.api.list("Event", world.namespace)}
    assert {"CanaryLoading", "CanaryStep", "Promoted", "RolledBack"} <= events


def test_a_revision_beside_the_one_that_serves(world: World, server: AnsweringServer, traffic: Traffic) -> None:
    world.start()
    publish(world, "first", "a")
    serve(world, server, CANARY | {"interval": "30m"})
    world.api.patch("ModelDeployment", world.namespace, "chat", {"spec": {"engine": {"maxModelLength": 2048}}})
    found = wait_deployment(world, "chat-r2")
    wait_rollout(world, "r2 to load", kind="Revision", stable="r1", canary="r2", phase="Loading")
    assert condition(world, "Ready")["status"] == "True", "r1 serves"
    with AnsweringServer("127.0.0.13") as second:
        start_pod(world, found, second)
        wait_rollout(world, "r2 to take its share", phase="Canary", weight=50)
        second.broken = {"chat"}
        drive_base(world, traffic)
        assert rollout(world)["reason"] == "ErrorRate"
        wait_for("r2 to go", lambda: world.api.get("Deployment", world.namespace, "chat-r2") is None)
        wait_for("all traffic on r1", lambda: set(traffic.send("chat", 20)) == {200})
        world.api.delete("EndpointSlice", world.namespace, f"chat-server-{second.port}")
    # The same spec is not tried again; promoted by hand, it takes over.
    stalled = world.wait_condition("Stalled", "chat", "RolledBack", "ModelDeployment")
    assert "annotate tuneloop.dev/promote=r2" in stalled["message"]
    promote(world, "r2")
    again = wait_deployment(world, "chat-r2")
    world.api.delete("Pod", world.namespace, "chat-r2-5d5f-x")
    with AnsweringServer("127.0.0.13") as second:
        start_pod(world, again, second)
        wait_rollout(world, "r2 to be promoted", phase="Promoted", canary="r2")
        wait_for("r1 to go", lambda: world.api.get("Deployment", world.namespace, "chat-r1") is None)


def drive_base(world: World, traffic: Traffic) -> None:
    def probe() -> bool:
        traffic.send("chat", 40)
        return bool(rollout(world)["phase"] == "RolledBack")

    wait_for("r2 to be rolled back", probe, timeout=180, show=lambda: world.status("chat", "ModelDeployment"))


def test_a_spec_that_is_set_back_withdraws_the_canary(world: World, server: AnsweringServer, traffic: Traffic) -> None:
    world.start()
    publish(world, "first", "a")
    before = serve(world, server, CANARY | {"interval": "30m"})["metadata"]
    world.api.patch("ModelDeployment", world.namespace, "chat", {"spec": {"engine": {"maxModelLength": 2048}}})
    found = wait_deployment(world, "chat-r2")
    with AnsweringServer("127.0.0.13") as second:
        start_pod(world, found, second)
        wait_rollout(world, "r2 to take its share", phase="Canary", weight=50)
        second.broken = {"chat"}
        world.api.patch("ModelDeployment", world.namespace, "chat", {"spec": {"engine": {"maxModelLength": 4096}}})
        withdrawn = wait_rollout(world, "r2 to be withdrawn", phase="RolledBack", reason="SpecSetBack", weight=0)
        assert withdrawn["message"] == "r2 was withdrawn, r1 serves: the spec was set back"
        wait_for("r2 to go", lambda: world.api.get("Deployment", world.namespace, "chat-r2") is None)
        # Its pod answers still, as pods on their way out do.
        wait_for("all traffic on r1", lambda: set(traffic.send("chat", 20)) == {200})
        assert set(traffic.send("chat", 40)) == {200}
        after = world.api.must("Deployment", world.namespace, "chat-r1")
        assert (after["metadata"]["uid"], after["spec"]["replicas"]) == (before["uid"], 1)
        assert world.status("chat", "ModelDeployment")["rejected"] == [], "it may be tried again"
        assert (condition(world, "Ready")["status"], condition(world, "Stalled")) == ("True", {})


def test_what_is_withdrawn_takes_no_room_and_nothing_begins_before_it_is_gone(
    world: World, server: AnsweringServer, traffic: Traffic
) -> None:
    """The revision that serves lacks a pod, and an adapter has a new version, as the spec is set back."""
    world.start()
    publish(world, "first", "a")
    publish(world, "second", "b")
    serve(world, server, CANARY | {"interval": "30m"}, scaling={"mode": "External", "replicas": 1})
    world.api.patch("ModelDeployment", world.namespace, "chat", {"spec": {"engine": {"maxModelLength": 2048}}})
    found = wait_deployment(world, "chat-r2")
    with AnsweringServer("127.0.0.13") as second:
        start_pod(world, found, second)
        wait_rollout(world, "r2 to take its share", phase="Canary", weight=50)
        back = {"engine": {"maxModelLength": 4096}, "scaling": {"mode": "External", "replicas": 2}}
        adapters = [{"name": "bot", "from": {"fineTuneJob": "second"}}]
        world.api.patch("ModelDeployment", world.namespace, "chat", {"spec": back | {"adapters": adapters}})
        wait_rollout(world, "r2 to be withdrawn", phase="RolledBack", reason="SpecSetBack", weight=0)
        wait_for("r2 to go", lambda: world.api.get("Deployment", world.namespace, "chat-r2") is None)
        assert wait_deployment(world, "chat-r1")["spec"]["replicas"] == 2
        progress = wait_for("the adapter to wait", lambda: condition(world, "Progressing"))
        assert progress["message"].endswith("; bot waits for that")
        world.api.delete("Pod", world.namespace, "chat-r2-5d5f-x")
        wait_rollout(world, "the adapter's turn", kind="Adapter", name="bot", canary="b" * 12)


def test_a_canary_is_withdrawn_where_another_model_is_asked_for(
    world: World, server: AnsweringServer, traffic: Traffic
) -> None:
    """It is neither promoted while that model is fetched, nor what serves afterwards."""
    world.start()
    publish(world, "first", "a")
    serve(world, server, CANARY | {"interval": "1s", "onNoTraffic": "Promote", "steps": [10, 50]})
    fetched = world.wait_job("chat-model")["metadata"]["uid"]
    world.api.patch("ModelDeployment", world.namespace, "chat", {"spec": {"engine": {"maxModelLength": 2048}}})
    wait_deployment(world, "chat-r2")
    wait_rollout(world, "r2 to load", kind="Revision", canary="r2", phase="Loading")
    commit = "f" * 40
    world.api.patch("ModelDeployment", world.namespace, "chat", {"spec": {"model": {"revision": commit}}})
    found = wait_rollout(world, "r2 to be withdrawn", phase="RolledBack", reason="SpecSetBack")
    assert found["message"] == "r2 was withdrawn, r1 serves: the spec asks for another model"
    wait_for("r2 to go", lambda: world.api.get("Deployment", world.namespace, "chat-r2") is None)
    other = {"modelUri": f"hf://org/model@{commit}", "modelPath": f"models/org/model/{commit}", "modelCommit": commit}
    fetch_model(world, world.wait_job("chat-model", not_uid=fetched), FETCHED | other)
    wait_deployment(world, "chat-r3")
    wait_rollout(world, "the third in its place", kind="Revision", stable="r1", phase="Loading")


def test_an_adapter_that_is_set_back_withdraws_its_canary(world: World, traffic: Traffic) -> None:
    """No request for the name fails meanwhile: the canary's version stays loaded until the gateways have heard."""
    world.start()
    for job, letter in (("first", "a"), ("bad", "b"), ("better", "c")):
        publish(world, job, letter)
    with LoadingServer("127.0.0.12") as server:
        serve(world, server, CANARY | {"interval": "30m"})
        name_job(world, "bad")
        wait_rollout(world, "the second version to take its share", canary=BAD, phase="Canary", weight=50)
        wait_for("both to answer", lambda: traffic.send("bot", 20) and len(set(server.answers)) == 2)
        name_job(world, "first")
        codes = traffic_until(traffic, lambda: server.loaded() == [f"bot@{OLD}"])
        assert codes == {200}
        withdrawn = rollout(world)
        assert (withdrawn["phase"], withdrawn["reason"], withdrawn["weight"]) == ("RolledBack", "SpecSetBack", 0)
        assert withdrawn["message"] == f"{BAD} was withdrawn, {OLD} serves: it is no longer wanted in its place"
        status = world.status("chat", "ModelDeployment")
        assert (status["rejected"], condition(world, "Stalled")) == ([], {}), "it may be tried again"

        # A third version instead of the second: the same, then its own canary.
        name_job(world, "bad")
        wait_rollout(world, "the second version to take its share again", canary=BAD, phase="Canary", weight=50)
        name_job(world, "better")
        assert traffic_until(traffic, lambda: rollout(world).get("canary") == NEW) == {200}
        wait_rollout(world, "the third version to take its share", stable=OLD, canary=NEW, phase="Canary")


def traffic_until(traffic: Traffic, done: Callable[[], bool]) -> set[int]:
    """Every status that users saw until then."""
    codes: set[int] = set()

    def probe() -> bool:
        codes.update(traffic.send("bot", 20))
        return done()

    wait_for("the end, under traffic", probe, timeout=180)
    return codes
