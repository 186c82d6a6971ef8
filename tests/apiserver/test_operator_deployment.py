"""ModelDeployment, the whole path on the real API server.

Kubelet and controllers are played, the servers answer HTTP.
"""

import json
from collections.abc import Iterator

import pytest
from operator_api import Obj, jwt_body, wait_for
from operator_servers import FakeServer
from operator_world import PUBLISHED, World
from serving_world import deployment, fetch_model, start_server, wait_deployment, wait_ready, with_model

from tuneloop_core.api.modeldeployment import AdapterSpec
from tuneloop_operator.policy.adapterfetch import job_tag
from tuneloop_operator.policy.serving import NO_KEY


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as made:
        yield made


def fetch_adapter(world: World, adapter: Obj, name: str = "chat") -> None:
    """The fetch Job of an adapter by URI: it ends, and is gone once its result is in the status."""
    job = world.wait_job(f"{name}-a-{job_tag(AdapterSpec.model_validate(adapter))}")
    pod = world.run_pod(world.make_pod(job))
    digest = "e" * 64
    facts = {"rank": 8, "base": "hf://org/model"}
    result = {"uri": "hf://org/bot@abc", "path": f"artifacts/{digest}", "digest": f"sha256:{digest}", "bytes": 5}
    world.end_pod(pod, {"stage": "fetch", "outcome": "Succeeded", "result": result | {"facts": facts}})
    world.complete(job)
    wait_for(
        "the Job to go once its result is known",
        lambda: world.api.get("Job", world.namespace, job["metadata"]["name"]) is None,
    )


def test_whole_path_with_an_adapter_of_an_unfinished_job(world: World, server: FakeServer) -> None:
    operator = world.start()
    by_labels = {"name": "newest", "from": {"selector": {"matchLabels": {"app": "support"}}}}
    by_uri = {"name": "hub", "from": {"uri": "hf://org/bot", "credentialsSecret": "hub"}}
    deployment(world, adapters=[{"name": "bot", "from": {"fineTuneJob": "one"}}, by_labels, by_uri])
    fetch_model(world, world.wait_job("chat-model"))
    fetch_adapter(world, by_uri)
    found = wait_deployment(world, "chat-r1")
    start_server(world, found, server.ip)
    waiting = world.wait_condition("Reconciling", "chat", "WaitingForFineTuneJob", "ModelDeployment")
    assert waiting["message"] == (
        "adapter bot: waiting for FineTuneJob one: there is none of that name in this namespace; adapter newest: no "
        "FineTuneJob of this namespace has these labels yet"
    )
    world.job(labels={"app": "support"})
    for stage in ("fetch", "check", "train", "publish"):
        world.succeed_stage(stage)
    told = wait_ready(world)["message"]
    assert told.startswith("1 replica answers at http://tuneloop-gateway")
    assert told.endswith(NO_KEY), "the chart opens nothing without a key"
    keys = [{"name": "app", "hash": "sha256:" + "0" * 64}]
    world.api.patch("ModelDeployment", world.namespace, "chat", {"spec": {"access": {"keys": keys}}})
    wait_for("Ready to say no more of keys", lambda: not wait_ready(world)["message"].endswith(NO_KEY))
    status = world.status("chat", "ModelDeployment")
    engine_name = "bot@" + "d" * 12
    assert server.loaded() == [engine_name, "newest@" + "d" * 12, "hub@" + "e" * 12]
    assert [(item["name"], item["engineName"], item["ready"]) for item in status["models"]] == [
        ("chat", "chat", True),
        ("bot", engine_name, True),
        ("newest", "newest@" + "d" * 12, True),
        ("hub", "hub@" + "e" * 12, True),
    ]
    assert [item["state"] for item in status["adapters"]] == ["Ready", "Ready", "Ready"]
    assert status["adapters"][1]["message"] == "1 job matches; newest complete is one"
    assert status["url"].endswith(f"/{world.namespace}/v1")
    assert (status["replicas"], status["readyReplicas"]) == (1, 1)
    assert status["revisions"][0]["image"] == "localhost/tuneloop/server:t"
    data = world.api.must("ConfigMap", world.namespace, "chat-server")["data"]
    assert json.loads(data["adapters.json"])["adapters"][0]["path"] == "artifacts/" + "d" * 64
    assert json.loads(data["guard.json"])["admin"] == [f"system:serviceaccount:{world.namespace}:tuneloop-operator"]
    assert json.loads(data["guard.json"])["jwks"]["keys"]
    assert json.loads(data["guard.json"])["audience"] == f"tuneloop-server/{world.namespace}"
    audiences = [jwt_body(token)["aud"] for token in server.tokens]
    assert audiences
    assert all(f"tuneloop-server/{world.namespace}" in each for each in audiences)
    assert world.api.get("Service", world.namespace, "chat-server")
    assert world.api.get("PodDisruptionBudget", world.namespace, "chat-server")
    assert world.api.must("Deployment", world.namespace, "chat-r1")["metadata"]["generation"] == 1
    # The version outlives the job.
    world.api.delete("FineTuneJob", world.namespace, "one")
    assert operator.end() == 0
    world.start()
    world.operators[-1].wait_look()
    digests = [item["digest"] for item in world.status("chat", "ModelDeployment")["adapters"]]
    assert digests == [f"sha256:{digit * 64}" for digit in "dde"]
    wait_ready(world)


def test_a_changed_engine_makes_a_revision_and_an_upgrade_does_not(world: World, server: FakeServer) -> None:
    operator = world.start()
    start_server(world, with_model(world), server.ip)
    wait_ready(world)
    operator.end()
    world.settings["images"] = {"trainer": "localhost/tuneloop/trainer:new", "server": "localhost/tuneloop/server:new"}
    operator = world.start()
    operator.wait_look()
    before = world.api.must("Deployment", world.namespace, "chat-r1")
    assert before["metadata"]["generation"] == 1
    world.api.patch("ModelDeployment", world.namespace, "chat", {"spec": {"engine": {"maxModelLength": 2048}}})
    found = wait_deployment(world, "chat-r2")
    assert found["spec"]["template"]["spec"]["containers"][0]["image"] == "localhost/tuneloop/server:new"
    assert world.api.get("Deployment", world.namespace, "chat-r1"), "the old revision serves until the new one is ready"
    data = world.api.must("ConfigMap", world.namespace, "chat-server")["data"]
    assert json.loads(data["server-r1.json"])["engine"] == {}, "what is the default is the server's own matter"
    assert json.loads(data["server-r2.json"])["engine"] == {"maxModelLength": 2048}
    with FakeServer("127.0.0.3") as second:
        start_server(world, found, second.ip)
        wait_for("the old revision to go", lambda: world.api.get("Deployment", world.namespace, "chat-r1") is None)
        wait_ready(world)
    assert [item["name"] for item in world.status("chat", "ModelDeployment")["revisions"]] == ["r2"]
    assert world.wait_job("chat-model"), "the model is not fetched again for another engine setting"


def test_a_failed_job_stalls_and_a_missing_model_heals(world: World, server: FakeServer) -> None:
    world.start()
    world.job("bad", evaluation={"gates": [{"metric": "evalLoss", "max": "0.1"}]})
    for stage in ("fetch", "check", "train"):
        world.succeed_stage(stage, "bad")
    world.wait_condition("Failed", "bad")
    deployment(world, adapters=[{"name": "bot", "from": {"fineTuneJob": "bad"}}])
    job = world.wait_job("chat-model")
    pod = world.run_pod(world.make_pod(job))
    said = {"stage": "fetch", "outcome": "Failed", "reason": "ModelNotFound", "message": "hf://org/model: not found"}
    world.end_pod(pod, said, 42)
    world.fail(job)
    stalled = world.wait_condition("Stalled", "chat", "ModelNotFound", "ModelDeployment")
    assert "hf://org/model: not found" in stalled["message"]
    # As if it had failed long ago.
    done = world.api.must("Job", world.namespace, "chat-model")["status"]["conditions"]
    aged = [item | {"lastTransitionTime": "2020-01-01T00:00:00Z"} for item in done]
    world.api.patch("Job", world.namespace, "chat-model", {"status": {"conditions": aged}}, "status")
    again = world.wait_job("chat-model", not_uid=job["metadata"]["uid"])
    fetch_model(world, again)
    assert again["metadata"]["annotations"]["tuneloop.dev/attempt"] == "2"
    start_server(world, wait_deployment(world, "chat-r1"), server.ip)
    stalled = world.wait_condition("Stalled", "chat", "FineTuneJobFailed", "ModelDeployment")
    assert "FineTuneJob bad failed (GateFailed" in stalled["message"]


def test_a_model_that_a_job_publishes_is_served_without_a_fetch(world: World, server: FakeServer) -> None:
    world.start()
    deployment(world, model={"fineTuneJob": "one"})
    waiting = world.wait_condition("Reconciling", "chat", "WaitingForFineTuneJob", "ModelDeployment")
    assert waiting["message"] == "waiting for FineTuneJob one: there is none of that name in this namespace"
    world.job(method={"adapter": "None"})
    for stage in ("fetch", "check", "train"):
        world.succeed_stage(stage)
    world.succeed_stage("publish", result=PUBLISHED | {"kind": "Model"})
    found = wait_deployment(world, "chat-r1")
    mounts = found["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert {"artifacts/" + "d" * 64} == {mount["subPath"] for mount in mounts if mount["mountPath"] == "/model"}
    start_server(world, found, server.ip)
    wait_ready(world)
    assert world.status("chat", "ModelDeployment")["model"]["uri"] == "finetunejob://one@sha256:" + "d" * 64
    assert world.api.get("Job", world.namespace, "chat-model") is None


def test_scale_subresource(world: World, server: FakeServer) -> None:
    world.start()
    start_server(world, with_model(world, scaling={"mode": "External", "replicas": 1}), server.ip)
    wait_ready(world)
    world.api.patch("ModelDeployment", world.namespace, "chat", {"spec": {"replicas": 0}}, "scale")
    wait_for(
        "the Deployment to be scaled",
        lambda: world.api.must("Deployment", world.namespace, "chat-r1")["spec"]["replicas"] == 0,
    )
    wait_for(
        "Ready to tell it",
        lambda: (world.condition("Ready", "chat", "ModelDeployment") or {}).get("reason") == "ScaledToZero",
    )


def test_the_younger_of_two_owners_of_a_name_is_told_and_heals(world: World, server: FakeServer) -> None:
    world.start()
    named = [{"name": "bot", "from": {"fineTuneJob": "one"}}]
    deployment(world, "first", adapters=named)
    deployment(world, "second", adapters=named)
    fetch_model(world, world.wait_job("second-model"))
    start_server(world, wait_deployment(world, "second-r1"), server.ip)
    stalled = world.wait_condition("Stalled", "second", "NameTaken", "ModelDeployment")
    assert stalled["message"] == (
        "adapter 'bot' belongs to ModelDeployment 'first'; rename it here, or remove it there"
    )
    assert [(item["name"], item["ready"]) for item in world.status("second", "ModelDeployment")["models"]] == [
        ("second", True),
        ("bot", False),
    ]
    assert [item["reason"] for item in world.status("first", "ModelDeployment")["adapters"]] == [
        "WaitingForFineTuneJob"
    ]
    world.api.patch("ModelDeployment", world.namespace, "first", {"spec": {"adapters": []}})
    world.wait_condition("Reconciling", "second", "WaitingForFineTuneJob", "ModelDeployment")
    world.api.patch("ModelDeployment", world.namespace, "first", {"spec": {"adapters": named}})
    world.wait_condition("Stalled", "second", "NameTaken", "ModelDeployment")
    world.api.delete("ModelDeployment", world.namespace, "first")
    world.wait_condition("Reconciling", "second", "WaitingForFineTuneJob", "ModelDeployment")
