"""A rollout on the real API server: a model server that answers by version, a real gateway process, and its traffic.

The EndpointSlices, which no controller makes here, are made by hand; they take no loopback address, so what the
gateway and the operator find by them listens on this machine's own.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
from operator_api import Obj, wait_for
from operator_servers import FakeServer, Listener
from operator_world import FETCHED, World
from ports import alone_on, free_port, own_address
from serving_world import make_pod, start_server, wait_ready, with_model

INTERNAL_PORT = 9090  # where the operator asks every gateway


class AnsweringServer(FakeServer):
    """Also answers chats, with the id that vLLM would make; requests for a version in ``broken`` fail."""

    def __init__(self, ip: str, port: int = 8000) -> None:
        """``ip``: a loopback address that no other file's tests use, for files run side by side."""
        super().__init__(ip, port)
        self._public = Listener((own_address(), 0), self.handler)
        self._serving = threading.Thread(target=self._public.serve_forever, daemon=True)
        self.broken: set[str] = set()
        self.slow: dict[str, tuple[float, float]] = {}  # seconds before the first token, and between tokens
        self.answers: list[str] = []

    @property
    def port(self) -> int:
        """Where the gateway asks it, at this machine's own address."""
        return int(self._public.server_address[1])

    def __enter__(self) -> Self:
        self._serving.start()
        return super().__enter__()

    def __exit__(self, *why: object) -> None:
        self._public.shutdown()
        self._public.server_close()
        self._serving.join()
        super().__exit__(*why)

    def chat(self, body: Obj, identity: str) -> tuple[int, Obj]:
        """Status and body of an answer."""
        model = body["model"]
        self.answers.append(model)
        if model in self.broken:
            return 500, {"error": {"message": "the engine failed", "type": "server_error"}}
        choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return 200, {"id": f"chatcmpl-{identity}", "model": model, "choices": [choice], "usage": usage}

    def stream(self, body: Obj, identity: str) -> Iterator[Obj | str]:
        """Two tokens, then what they came to; as slow as ``slow`` says."""
        first, between = self.slow.get(body["model"], (0.0, 0.0))
        chunk = {"id": f"chatcmpl-{identity}", "model": body["model"], "object": "chat.completion.chunk"}
        for seconds in (first, between):
            time.sleep(seconds)
            yield chunk | {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]}
        yield chunk | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        yield chunk | {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}
        yield "[DONE]"


class LoadingServer(AnsweringServer):
    """Loads as the test says: what is in ``loading`` stays on its way, what is in ``refused`` fails with those words.

    A version that is not loaded is not found, as the engine has it.
    """

    def __init__(self, ip: str, port: int = 8000) -> None:
        super().__init__(ip, port)
        self.loading: set[str] = set()
        self.refused: dict[str, str] = {}

    def state(self, name: str) -> str:
        """Of one version that it was told to load."""
        return "Failed" if name in self.refused else "Loading" if name in self.loading else "Loaded"

    def status(self) -> Obj:
        told = [(name, self.state(name), self.refused.get(name, "")) for name in self.loaded()]
        adapters = [{"engineName": name, "state": state, "message": words} for name, state, words in told]
        return super().status() | {"adapters": adapters}

    def chat(self, body: Obj, identity: str) -> tuple[int, Obj]:
        model = body["model"]
        if "@" in model and (model not in self.loaded() or self.state(model) != "Loaded"):
            return 404, {"error": {"message": f"The model `{model}` does not exist.", "type": "NotFoundError"}}
        return super().chat(body, identity)


def slice_of(world: World, service: str, port: int, pod: str = "") -> Obj:
    """The EndpointSlice that the controller would make."""
    labels = {"kubernetes.io/service-name": service, "app.kubernetes.io/managed-by": "tuneloop"}
    end: Obj = {"addresses": [own_address()], "conditions": {"ready": True}}
    if pod:
        end["targetRef"] = {"kind": "Pod", "name": pod, "namespace": world.namespace}
    return world.api.create(
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": f"{service}-{port}", "namespace": world.namespace, "labels": labels},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
            "endpoints": [end],
        }
    )


class Traffic:
    """Users of one deployment, through the gateway."""

    def __init__(self, world: World, port: int) -> None:
        self._client = httpx.Client(base_url=f"http://{own_address()}:{port}/{world.namespace}/v1/", timeout=30)

    def close(self) -> None:
        self._client.close()

    def models(self) -> list[str]:
        """Names that the gateway lists."""
        answer = self._client.get("models")
        return [each["id"] for each in answer.json()["data"]] if answer.status_code == 200 else []

    def send(self, model: str, users: int, score: Callable[[str], float] | None = None) -> list[int]:
        """One chat a user, each scored by the version that answered; the statuses."""
        codes = []
        for number in range(users):
            asked = {"model": model, "user": f"user-{number}", "messages": [{"role": "user", "content": "x"}]}
            answer = self._client.post("chat/completions", json=asked)
            codes.append(answer.status_code)
            if score is not None and answer.status_code == 200:
                body = answer.json()
                scored = {"id": body["id"], "score": score(body["model"])}
                assert self._client.post("feedback", json=scored).status_code in (200, 404), "404: it went meanwhile"
        return codes

    def stream(self, model: str, users: int) -> list[int]:
        """One streamed chat a user, eight at a time; the statuses."""

        def ask(number: int) -> int:
            asked = {"model": model, "user": f"user-{number}", "messages": [{"role": "user", "content": "x"}]}
            with self._client.stream("POST", "chat/completions", json=asked | {"stream": True}) as answer:
                answer.read()
                return answer.status_code

        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(ask, range(users)))


@contextmanager
def gateway(world: World, folder: Path) -> Iterator[Traffic]:
    """A gateway process where the operator looks for it, open to all."""
    port = free_port()
    settings = folder / "gateway.yaml"
    names = f'["{world.namespace}"]'
    settings.write_text(
        f"images: {{trainer: t, server: s}}\nnamespaces: {names}\ngateway: {{allowWithoutKeys: true}}\n"
    )
    env = os.environ | {
        "TUNELOOP_SETTINGS": str(settings),
        "KUBECONFIG": str(world.kubeconfig),
        "TUNELOOP_GATEWAY_HOST": own_address(),
        "TUNELOOP_GATEWAY_PORT": str(port),
        "TUNELOOP_GATEWAY_INTERNAL_PORT": str(INTERNAL_PORT),
        "TUNELOOP_GATEWAY_LAME_SECONDS": "0.1",
        "POD_NAME": "gateway-0",
    }
    slice_of(world, "tuneloop-gateway", port)
    log = folder / "gateway.log"
    with alone_on(INTERNAL_PORT), _process(env, log):
        traffic = Traffic(world, port)
        try:
            wait_for("the gateway to listen", lambda: _listens(traffic), show=log.read_text)
            yield traffic
        finally:
            traffic.close()


@contextmanager
def _process(env: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "tuneloop_gateway"], env=env, stdout=out, stderr=out)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _listens(traffic: Traffic) -> bool:
    try:
        traffic.models()
    except httpx.TransportError:
        return False
    return True


def publish(world: World, name: str, letter: str, fetched: Obj = FETCHED) -> Obj:
    """A FineTuneJob that has published its adapter: a version of its own, made for what was ``fetched``."""
    world.job(name)
    world.succeed_stage("fetch", name, fetched)
    for stage in ("check", "train"):
        world.succeed_stage(stage, name)
    artifact: dict[str, Any] = {
        "kind": "Adapter",
        "path": f"artifacts/{letter * 64}",
        "digest": f"sha256:{letter * 64}",
    }
    return world.succeed_stage("publish", name, artifact | {"bytes": 1})


def rollout(world: World) -> Obj:
    """``status.rollout`` of the deployment."""
    return dict(world.status("chat", "ModelDeployment").get("rollout") or {})


def condition(world: World, kind: str) -> Obj:
    """A condition of it; empty where it has none of this type."""
    return world.condition(kind, "chat", "ModelDeployment") or {}


def wait_rollout(world: World, what: str, **wanted: Any) -> Obj:
    """Wait until the rollout has these fields."""

    def probe() -> Obj | None:
        found = rollout(world)
        return found if wanted.items() <= found.items() else None

    return dict(wait_for(what, probe, show=lambda: world.status("chat", "ModelDeployment")))


def name_job(world: World, job: str) -> None:
    """Another job's adapter under the same name."""
    adapters = [{"name": "bot", "from": {"fineTuneJob": job}}]
    world.api.patch("ModelDeployment", world.namespace, "chat", {"spec": {"adapters": adapters}})


def promote(world: World, version: str) -> None:
    """Ask by hand for a version, as kubectl annotate does."""
    annotations = {"tuneloop.dev/promote": version}
    world.api.patch("ModelDeployment", world.namespace, "chat", {"metadata": {"annotations": annotations}})


def serve(world: World, server: AnsweringServer, canary: Obj | None, node: str = "", **more: Any) -> Obj:
    """The deployment with its first version, ready and in the gateway's table; the Deployment of r1."""
    spec = {
        "adapters": [{"name": "bot", "from": {"fineTuneJob": "first"}}],
        "rollout": {"strategy": "Canary", "canary": canary} if canary else {"strategy": "RollingUpdate"},
    } | more
    found = with_model(world, **spec)
    start_pod(world, found, server, make_pod(world, found, node=node))
    wait_ready(world)
    return found


def start_pod(world: World, found: Obj, server: AnsweringServer, pod: Obj | None = None) -> None:
    """The pod of a Deployment, ready and in the gateway's table."""
    pod = start_server(world, found, server.ip, pod)
    slice_of(world, "chat-server", server.port, pod["metadata"]["name"])
