"""What keeps pods with a way out from where they must not go: policies of the namespace, refused addresses."""

import json
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from operator_world import World
from serving_world import deployment

from tuneloop_core.constants import STAGE_INPUT_ENV

POLICIES = ("tuneloop-train", "tuneloop-stages", "tuneloop-server")


def refused(world: World, name: str) -> list[str]:
    """The refused addresses of a job's fetch pod."""
    (container,) = world.wait_job(f"{name}-fetch")["spec"]["template"]["spec"]["containers"]
    (value,) = [each["value"] for each in container["env"] if each["name"] == STAGE_INPUT_ENV]
    return list(json.loads(value)["refusedAddresses"])


def test_downloads_are_kept_from_the_api_server_and_the_nodes(world: World, kubeconfig: Path) -> None:
    server = urlsplit(yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"]).netloc
    name = f"{world.namespace}-node"
    world.api.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    addresses = [{"type": "InternalIP", "address": "192.0.2.7"}, {"type": "InternalIP", "address": "192.0.2.8"}]
    world.api.patch("Node", "", name, {"status": {"addresses": addresses}}, "status")
    hub = {"refusedAddresses": ["10.1.0.0/16"], "allowedAddresses": ["192.0.2.8/32"]}
    world.settings |= {"hub": hub, "clusterScopedRights": True}
    world.start()
    world.job()
    found = refused(world, "one")
    world.api.delete("Node", "", name)
    assert {"10.1.0.0/16", server, "192.0.2.7/32"} <= set(found)
    assert "192.0.2.8/32" not in found


def test_policies_go_where_the_chart_turns_them_off(world: World) -> None:
    first = world.start()
    world.job()
    world.wait_job("one-fetch")
    assert all(world.api.get("NetworkPolicy", world.namespace, name) for name in POLICIES)
    assert first.end() == 0
    foreign = world.api.must("NetworkPolicy", world.namespace, "tuneloop-train")["spec"]
    world.api.delete("NetworkPolicy", world.namespace, "tuneloop-train")
    metadata = {"name": "tuneloop-train", "namespace": world.namespace}
    world.api.create(
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": foreign}
    )
    world.settings["networkPolicies"] = False
    world.start()
    world.job("two")
    world.wait_job("two-fetch")
    left = [name for name in POLICIES if world.api.get("NetworkPolicy", world.namespace, name)]
    assert left == ["tuneloop-train"], "somebody else's stays"


def test_a_secret_that_is_not_allowed_stalls_before_a_pod_is_made(world: World) -> None:
    world.settings["secrets"] = {"allowedNames": ["hub-*"]}
    world.start()
    dataset = {"uri": "https://example.com/rows.jsonl", "credentialsSecret": "database"}
    world.job(dataset=dataset, model={"uri": "hf://org/model", "credentialsSecret": "hub-token"})
    found = world.wait_condition("Stalled", reason="SecretNotAllowed")
    assert "dataset.credentialsSecret names Secret database" in found["message"]
    assert world.api.list("Job", world.namespace) == []
    bot = {"name": "bot", "from": {"uri": "hf://org/bot", "credentialsSecret": "database"}}
    deployment(world, "served", adapters=[bot])
    world.wait_job("served-model")
    assert [job["metadata"]["name"] for job in world.api.list("Job", world.namespace)] == ["served-model"]
