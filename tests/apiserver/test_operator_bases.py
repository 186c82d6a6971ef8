"""The base model changes under adapters: each revision's servers load those of their own base, and no name falters."""

import json
from collections.abc import Iterator

import pytest
from operator_api import Obj, wait_for
from operator_world import FETCHED, World
from rollout_world import AnsweringServer, Traffic, promote, publish, serve, start_pod, wait_rollout
from serving_world import fetch_model, wait_deployment, wait_ready

COMMIT = "f" * 40
OTHER = FETCHED | {
    "modelUri": f"hf://org/model@{COMMIT}",
    "modelPath": f"models/org/model/{COMMIT}",
    "modelCommit": COMMIT,
}
OLD, NEW = "bot@" + "a" * 12, "bot@" + "b" * 12
CANARY: Obj = {"steps": [50], "interval": "30m", "minRequests": 10}


@pytest.fixture
def server() -> Iterator[AnsweringServer]:
    with AnsweringServer("127.0.0.16") as made:
        yield made


@pytest.fixture
def second() -> Iterator[AnsweringServer]:
    with AnsweringServer("127.0.0.15") as made:
        yield made


def change_base(world: World, server: AnsweringServer, traffic: Traffic, canary: Obj | None) -> Obj:
    """Another commit of the base, and with it the adapter that was trained on that; the Deployment of r2."""
    world.start()
    publish(world, "first", "a")
    publish(world, "second", "b", OTHER)
    serve(world, server, canary)
    wait_for("the adapter to answer", lambda: traffic.send("bot", 1) == [200])
    before = world.wait_job("chat-model")["metadata"]["uid"]
    adapters = [{"name": "bot", "from": {"fineTuneJob": "second"}}]
    spec = {"model": {"uri": "hf://org/model", "revision": COMMIT}, "adapters": adapters}
    world.api.patch("ModelDeployment", world.namespace, "chat", {"spec": spec})
    job = world.wait_job("chat-model", not_uid=before)
    still_serves(world, server, traffic)
    fetch_model(world, job, OTHER)
    return wait_deployment(world, "chat-r2")


def still_serves(world: World, server: AnsweringServer, traffic: Traffic) -> None:
    server.answers.clear()
    assert traffic.send("bot", 5) == [200] * 5
    assert (set(server.answers), server.loaded(), server.ever) == ({OLD}, [OLD], {OLD})
    assert served(world)["engineName"] == OLD


def served(world: World) -> Obj:
    models: list[Obj] = world.status("chat", "ModelDeployment")["models"]
    return next(model for model in models if model["name"] == "bot")


def listed(world: World, revision: str) -> list[str]:
    data = world.api.must("ConfigMap", world.namespace, "chat-server")["data"]
    found = json.loads(data[f"adapters-{revision}.json"])["adapters"]
    return [f"{item['name']}@{item['digest'].removeprefix('sha256:')[:12]}" for item in found]


def test_the_old_base_serves_with_its_adapters_until_the_new_one_has_its_own(
    world: World, server: AnsweringServer, second: AnsweringServer, traffic: Traffic
) -> None:
    found = change_base(world, server, traffic, None)
    volumes = {each["name"]: each for each in found["spec"]["template"]["spec"]["volumes"]}
    assert {"key": "adapters-r2.json", "path": "adapters.json"} in volumes["config"]["configMap"]["items"]
    assert (listed(world, "r1"), listed(world, "r2")) == ([OLD], [NEW])
    still_serves(world, server, traffic)
    start_pod(world, found, second)
    wait_for("r1 to go", lambda: world.api.get("Deployment", world.namespace, "chat-r1") is None)
    world.api.delete("Pod", world.namespace, "chat-r1-5d5f-x")
    world.api.delete("EndpointSlice", world.namespace, f"chat-server-{server.port}")
    wait_for("the new version under the name", lambda: served(world)["engineName"] == NEW, show=lambda: served(world))
    wait_for("it to be loaded", lambda: second.loaded() == [NEW], show=second.loaded)
    wait_ready(world)
    wait_for("requests to reach it", lambda: traffic.send("bot", 1) == [200] and second.answers[-1:] == [NEW])
    assert (server.ever, second.ever) == ({OLD}, {NEW})


def test_a_canary_of_another_base_answers_with_its_own_adapters(
    world: World, server: AnsweringServer, second: AnsweringServer, traffic: Traffic
) -> None:
    found = change_base(world, server, traffic, CANARY)
    start_pod(world, found, second)
    wait_rollout(world, "r2 to take its share", kind="Revision", canary="r2", phase="Canary", weight=50)
    assert served(world)["canary"] == {"engineName": NEW, "revision": "r2", "weight": 50}
    wait_for("both to answer", lambda: set(traffic.send("bot", 20)) == {200} and second.answers)
    assert (set(server.answers), set(second.answers)) == ({OLD}, {NEW})
    promote(world, "r2")
    wait_rollout(world, "the promotion by hand", canary="r2", phase="Promoted")
    wait_for("the new version under the name", lambda: served(world)["engineName"] == NEW, show=lambda: served(world))
    assert (server.ever, second.ever) == ({OLD}, {NEW})


def test_an_adapter_too_wide_for_the_next_engine_is_served_until_that_takes_over(
    world: World, server: AnsweringServer, second: AnsweringServer, traffic: Traffic
) -> None:
    world.start()
    publish(world, "first", "a")
    serve(world, server, None)
    wait_for("the adapter to answer", lambda: traffic.send("bot", 1) == [200])
    spec = {"engine": {"lora": {"maxRank": 8}}}
    world.api.patch("ModelDeployment", world.namespace, "chat", {"spec": spec})
    found = wait_deployment(world, "chat-r2")
    assert (listed(world, "r1"), listed(world, "r2")) == ([OLD], [])
    told = world.wait_condition("AdaptersReady", "chat", "AdapterMisfit", "ModelDeployment")["message"]
    assert told.startswith("1 of 1 adapters are loaded; adapter bot: FineTuneJob first has rank 16, and engine.lora")
    still_serves(world, server, traffic)

    start_pod(world, found, second)
    wait_for("r1 to go", lambda: world.api.get("Deployment", world.namespace, "chat-r1") is None)
    wait_for("the name to be refused", lambda: traffic.send("bot", 1) == [503])
    world.wait_condition("Stalled", "chat", "AdapterMisfit", "ModelDeployment")
    assert second.ever == set()
