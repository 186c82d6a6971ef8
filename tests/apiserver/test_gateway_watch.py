"""The gateway's watches against the real API server: changes, a stale version, namespaces, a restart."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import crd_rules
import gateway_world as world
import openai as sdk
import pytest
from gateway_process import Process, started
from gateway_world import DIGEST12, HASH, order
from operator_api import Api
from ports import free_port, own_address

from tuneloop_gateway.cluster import from_kubeconfig
from tuneloop_gateway.routes import Deployment, parse_deployment
from tuneloop_gateway.watch import Pace, Watcher
from tuneloop_localcluster import controlplane
from tuneloop_localcluster.apionly import NAMES
from tuneloop_localcluster.apiserver import ControlPlane
from tuneloop_localcluster.paths import State, cache

KIND, SLICE = "ModelDeployment", "EndpointSlice"
HARDLY_HELD = {"hold": {"maxSeconds": 0.2}}  # a request without a replica is answered soon


def deployment(namespace: str, name: str, adapters: tuple[str, ...] = ()) -> dict[str, Any]:
    """A ModelDeployment as a user writes it."""
    return {
        "apiVersion": "tuneloop.dev/v1alpha1",
        "kind": KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"uri": "hf://org/name"},
            "adapters": [{"name": each, "from": {"fineTuneJob": each}} for each in adapters],
            "access": {"keys": [{"name": "app", "hash": HASH}]},
        },
    }


def endpoints(namespace: str, name: str, port: int, ready: bool = True) -> dict[str, Any]:
    """What Kubernetes makes of the headless Service of a deployment."""
    labels = {"kubernetes.io/service-name": f"{name}-server", "app.kubernetes.io/managed-by": "tuneloop"}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": SLICE,
        "metadata": {"name": f"{name}-server-1", "namespace": namespace, "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [own_address()], "conditions": {"ready": ready}}],
    }


def new_namespace(api: Api) -> str:
    """A namespace of this test's own."""
    name = f"gateway-{uuid.uuid4().hex[:8]}"
    api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name


@pytest.fixture
async def server() -> AsyncIterator[world.ModelServer]:
    """A model server on all addresses."""
    found = world.ModelServer()
    async with world.listening(found.application(), host="0.0.0.0") as port:
        found.port = port
        yield found


async def status_of_chat(gateway: Process, namespace: str, model: str) -> int:
    """The status code of one chat, 0 where nobody listens."""
    async with gateway.client(namespace) as client:
        try:
            await client.chat.completions.create(model=model, messages=order(do="answer"))
        except sdk.APIStatusError as error:
            return error.status_code
        except sdk.APIConnectionError:
            return 0  # it does not listen yet
        return 200


async def answers(gateway: Process, namespace: str, model: str, status: int) -> None:
    """Wait until a chat answers with this status."""
    found = 0
    for _ in range(600):
        found = await status_of_chat(gateway, namespace, model)
        if found == status:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"waited for {status} of {namespace}/{model}, found {found}\n{gateway.log.read_text()}")


async def test_resources_become_routes(admin: Api, kubeconfig: Path, server: world.ModelServer, tmp_path: Path) -> None:
    space = new_namespace(admin)
    async with started(tmp_path, kubeconfig, gateway=HARDLY_HELD) as gateway:
        admin.create(deployment(space, "qa", ("bot",)))
        await gateway.becomes(["qa"], space)
        await answers(gateway, space, "qa", 503)
        admin.create(endpoints(space, "qa", server.port))
        await answers(gateway, space, "qa", 200)
        await answers(gateway, space, "bot", 503)
        loaded = {"name": "bot", "engineName": f"bot@{DIGEST12}", "state": "Ready"}
        admin.patch(KIND, space, "qa", {"status": {"adapters": [loaded]}}, "status")
        await gateway.becomes(["bot", "qa"], space)
        await answers(gateway, space, "bot", 200)
        assert server.seen[-1].body["model"] == f"bot@{DIGEST12}"
        admin.patch(SLICE, space, "qa-server-1", {"endpoints": endpoints(space, "qa", 1, ready=False)["endpoints"]})
        await answers(gateway, space, "qa", 503)
        admin.delete(SLICE, space, "qa-server-1")
        admin.create(endpoints(space, "qa", server.port))
        await answers(gateway, space, "qa", 200)
        admin.patch(KIND, space, "qa", {"spec": {"access": None}})
        await answers(gateway, space, "qa", 401)
        admin.delete(KIND, space, "qa")
        admin.create(deployment(space, "other"))
        await gateway.becomes(["other"], space)


async def test_slices_without_our_label_are_not_seen(
    admin: Api, kubeconfig: Path, server: world.ModelServer, tmp_path: Path
) -> None:
    space = new_namespace(admin)
    foreign = endpoints(space, "qa", server.port)
    del foreign["metadata"]["labels"]["app.kubernetes.io/managed-by"]
    admin.create(foreign)
    admin.create(deployment(space, "qa"))
    async with started(tmp_path, kubeconfig, gateway=HARDLY_HELD) as gateway:
        await gateway.becomes(["qa"], space)
        assert await status_of_chat(gateway, space, "qa") == 503


async def test_only_the_namespaces_of_the_settings(admin: Api, kubeconfig: Path, tmp_path: Path) -> None:
    ours, theirs = new_namespace(admin), new_namespace(admin)
    for space in (ours, theirs):
        admin.create(deployment(space, "qa"))
    async with started(tmp_path, kubeconfig, namespaces=[ours]) as gateway:
        await gateway.becomes(["qa"], ours)
        await gateway.becomes([], theirs)


async def test_a_version_that_is_too_old_lists_again(admin: Api, kubeconfig: Path) -> None:
    space = new_namespace(admin)
    for name in ("a", "b", "c"):
        admin.create(deployment(space, name))
    access, changes = from_kubeconfig(kubeconfig), asyncio.Event()
    path = f"/apis/tuneloop.dev/v1alpha1/namespaces/{space}/modeldeployments"
    watcher: Watcher[Deployment] = Watcher(path, parse_deployment, changes.set, pace=Pace(first_backoff=0.05))
    watcher._version = "1"  # as after a long time without the API server
    async with aiohttp.ClientSession() as session:
        task = asyncio.create_task(watcher.run(session, access))
        await asyncio.wait_for(watcher.synced.wait(), 60)
        assert sorted(name for _, name in watcher.objects) == ["a", "b", "c"]
        assert watcher.relists == 1
        changes.clear()
        admin.delete(KIND, space, "b")
        await asyncio.wait_for(changes.wait(), 60)
        assert sorted(name for _, name in watcher.objects) == ["a", "c"]
        task.cancel()


async def test_short_watches_lose_nothing(admin: Api, kubeconfig: Path) -> None:
    """Watches that end every second: events between them come with the next."""
    space = new_namespace(admin)
    path = f"/apis/tuneloop.dev/v1alpha1/namespaces/{space}/modeldeployments"
    pace = Pace(watch=1.0, first_backoff=0.05)
    watcher: Watcher[Deployment] = Watcher(path, parse_deployment, lambda: None, pace=pace)
    async with aiohttp.ClientSession() as session:
        task = asyncio.create_task(watcher.run(session, from_kubeconfig(kubeconfig)))
        for number in range(15):
            admin.create(deployment(space, f"m{number}"))
            await asyncio.sleep(0.2)
        await world.until(lambda: len(watcher.objects) == 15, "all objects to be seen", 60)
        assert watcher.relists == 1
        task.cancel()


@pytest.fixture
def plane(tmp_path: Path, kubeconfig: Path) -> Iterator[ControlPlane]:
    """An etcd and API server of this test's own, so that it may be ended under nobody else's feet."""
    assert kubeconfig, "the programs are built by now"
    here = ControlPlane(
        State(tmp_path / "plane"), "127.0.0.1", free_port(), free_port(count=2), "198.18.145.0/24", alone=True
    )
    controlplane.prepare(here)
    _start(here)
    try:
        yield here
    finally:
        controlplane.stop(here, NAMES)


def _start(here: ControlPlane) -> None:
    controlplane.start(cache(), here, lambda daemon, command: daemon.start(command))


async def test_a_restart_of_the_api_server(
    plane: ControlPlane, server: world.ModelServer, tmp_path: Path, kubectl: Any
) -> None:
    config = plane.state.admin_kubeconfig
    kubectl("--kubeconfig", str(config), "apply", "--server-side", "-f", str(crd_rules.ROOT / "crds"))
    names = [f"crd/{plural}.tuneloop.dev" for plural in crd_rules.KINDS]
    kubectl("--kubeconfig", str(config), "wait", "--for=condition=Established", "--timeout=60s", *names)
    api = Api(config)
    space = new_namespace(api)
    api.create(deployment(space, "qa"))
    api.create(endpoints(space, "qa", server.port))
    async with started(tmp_path, config) as gateway:
        await answers(gateway, space, "qa", 200)
        await asyncio.to_thread(controlplane.daemon(plane, controlplane.APISERVER).stop)
        assert await status_of_chat(gateway, space, "qa") == 200, "it serves with the last table"
        await asyncio.to_thread(_start, plane)
        api.create(deployment(space, "second"))
        await gateway.becomes(["qa", "second"], space)
        assert await status_of_chat(gateway, space, "qa") == 200
    api.close()
