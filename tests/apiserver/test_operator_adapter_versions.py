"""New versions of adapters without a canary: the old ones answer until the new ones do, or for good."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from operator_api import Obj, wait_for
from operator_world import World
from rollout_world import LoadingServer, Traffic, condition, publish, rollout, serve
from serving_world import wait_ready

from tuneloop_core.api.modeldeployment import AdapterSpec
from tuneloop_operator.policy.adapterfetch import job_tag

NAMES = ("bot", "aide")
A, B, C = (letter * 12 for letter in "abc")
WORDS = "AssertionError: expected shape (8, 576), found (8, 2048)"


@pytest.fixture
def server() -> Iterator[LoadingServer]:
    with LoadingServer("127.0.0.17") as made:
        yield made


@contextmanager
def going_on(traffic: Traffic) -> Iterator[list[int]]:
    """Requests for all names, on and on; the statuses so far."""
    codes: list[int] = []
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.05):
            for name in NAMES:
                codes.extend(traffic.send(name, 1))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield codes
    finally:
        over.set()
        thread.join()


def adapters_of(job: str) -> list[Obj]:
    return [{"name": name, "from": {"fineTuneJob": job}} for name in NAMES]


def name_jobs(world: World, *listed: Obj) -> None:
    world.api.patch("ModelDeployment", world.namespace, "chat", {"spec": {"adapters": list(listed)}})


def statuses(world: World) -> list[Obj]:
    return list(world.status("chat", "ModelDeployment")["adapters"])


def served(world: World) -> list[str]:
    """What the gateways ask the servers for, by adapter."""
    return [each["engineName"] for each in world.status("chat", "ModelDeployment")["models"] if each["kind"] != "Base"]


def versions(digits: str) -> list[str]:
    return [f"{name}@{digits}" for name in NAMES]


def wait_versions(world: World, what: str, wanted: list[str]) -> None:
    wait_for(what, lambda: served(world) == wanted, show=lambda: world.status("chat", "ModelDeployment"))


def wait_loaded(server: LoadingServer, what: str, wanted: list[str]) -> None:
    wait_for(what, lambda: sorted(server.loaded()) == sorted(wanted), show=server.loaded)


def test_new_versions_take_over_without_a_failed_request(world: World, server: LoadingServer, traffic: Traffic) -> None:
    operator = world.start()
    for job, letter in (("first", "a"), ("second", "b")):
        publish(world, job, letter)
    serve(world, server, None, adapters=adapters_of("first"))
    wait_for("both to answer", lambda: [traffic.send(name, 1) for name in NAMES] == [[200], [200]])
    server.loading = set(versions(B))
    with going_on(traffic) as codes:
        name_jobs(world, *adapters_of("second"))
        wait_loaded(server, "both versions in the server", versions(A) + versions(B))
        found = world.wait_condition("Reconciling", "chat", "AdaptersLoading", "ModelDeployment")
        assert f"version {B} is loaded beside {A}, which serves: 0 of 1 ready pods have it" in found["message"]
        assert [(each["digest"][7:19], each.get("nextEngineName", "")) for each in statuses(world)] == [
            (A, name) for name in versions(B)
        ]

        # An operator that starts in the middle of it has heard of no server yet.
        assert operator.end() == 0
        again = world.start()
        again.wait_look()
        assert served(world) == versions(A)
        server.loading = {versions(B)[1]}
        wait_versions(world, "each to take over by itself", [versions(B)[0], versions(A)[1]])
        server.loading = set()
        wait_versions(world, "both to take over", versions(B))
        assert set(versions(A)) <= set(server.loaded()), "requests may still be on their way to them"
        wait_loaded(server, "the old versions to be freed", versions(B))
        wait_ready(world)
    assert set(codes) == {200}
    assert server.answers[-1] in versions(B)


def test_a_version_that_does_not_load_leaves_the_old_one(world: World, server: LoadingServer, traffic: Traffic) -> None:
    operator = world.start()
    for job, letter in (("first", "a"), ("bad", "b"), ("better", "c")):
        publish(world, job, letter)
    serve(world, server, None, adapters=adapters_of("first"))
    wait_for("both to answer", lambda: [traffic.send(name, 1) for name in NAMES] == [[200], [200]])
    server.refused = dict.fromkeys(versions(B), WORDS)
    with going_on(traffic) as codes:
        name_jobs(world, *adapters_of("bad"))
        found = world.wait_condition("Stalled", "chat", "AdapterFailed", "ModelDeployment")
        assert f"version {B} did not load: {WORDS}; still serving version {A}" in found["message"]
        assert [(each["state"], each["reason"]) for each in statuses(world)] == [("Ready", "AdapterFailed")] * 2
        assert operator.end() == 0
        again = world.start()
        again.wait_look()
        assert condition(world, "Stalled")["reason"] == "AdapterFailed"
        assert served(world) == versions(A)

        # One name is given another version; the other's loads after all.
        bot, aide = adapters_of("better")[0], adapters_of("bad")[1]
        name_jobs(world, bot, aide)
        wait_versions(world, "the better version", [versions(C)[0], versions(A)[1]])
        assert [each["reason"] for each in statuses(world)] == ["", "AdapterFailed"]
        server.refused = {}
        wait_versions(world, "the other to heal", [versions(C)[0], versions(B)[1]])
        wait_for("Stalled to go", lambda: not condition(world, "Stalled"))
    assert set(codes) == {200}

    # What is removed is gone at once, whatever was loaded beside it.
    name_jobs(world, adapters_of("better")[0])
    wait_for("404", lambda: traffic.send("aide", 1) == [404])
    wait_loaded(server, "it to be unloaded", versions(C)[:1])
    data = world.api.must("ConfigMap", world.namespace, "chat-server")["data"]["adapters.json"]
    assert [each["name"] for each in json.loads(data)["adapters"]] == ["bot"]


@pytest.mark.parametrize("canary", [None, {"steps": [50], "minRequests": 1}], ids=["RollingUpdate", "Canary"])
def test_a_uri_that_misfits_leaves_the_version_before(
    world: World, server: LoadingServer, traffic: Traffic, canary: Obj | None
) -> None:
    operator = world.start()
    publish(world, "first", "a")
    serve(world, server, canary)
    wait_for("it to answer", lambda: traffic.send("bot", 1) == [200])
    by_uri = {"name": "bot", "from": {"uri": "hf://org/bot"}}
    name_jobs(world, by_uri)
    job = world.wait_job(f"chat-a-{job_tag(AdapterSpec.model_validate(by_uri))}")
    result = {"uri": "hf://org/bot@abc", "path": f"artifacts/{'e' * 64}", "digest": f"sha256:{'e' * 64}", "bytes": 5}
    result["facts"] = {"rank": 64, "base": "hf://org/model"}
    world.end_pod(world.run_pod(world.make_pod(job)), {"stage": "fetch", "outcome": "Succeeded", "result": result})
    world.complete(job)

    stalled = world.wait_condition("Stalled", "chat", "AdapterMisfit", "ModelDeployment")
    assert stalled["message"] == (
        "adapter bot: hf://org/bot has rank 64, and engine.lora.maxRank is 32: raise it to at least 64; still serving "
        f"version {A}"
    )
    assert traffic.send("bot", 20) == [200] * 20
    assert (server.loaded(), rollout(world)) == ([f"bot@{A}"], {})
    told = condition(world, "AdaptersReady")
    assert (told["status"], told["reason"]) == ("True", "AdapterMisfit")
    assert stalled["message"] in told["message"]

    # It is judged anew from what was fetched, and heals by itself where the servers take it.
    assert operator.end() == 0
    world.start()
    world.api.patch("ModelDeployment", world.namespace, "chat", {"spec": {"engine": {"lora": {"maxRank": 64}}}})
    wait_for("Stalled to go", lambda: not condition(world, "Stalled"))
