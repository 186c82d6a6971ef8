"""A rollout on the real API server: a model server that answers by version, a real gateway process, and its traffic.

The EndpointSlices, which no controller makes here, are made by hand; they take no loopback address, so what the
gateway and the operator find by them listens on this machine's own.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import httpx
from operator_api import Obj, wait_for
from operator_servers import FakeServer
from operator_world import World
from ports import free_port

INTERNAL_PORT = 9090  # where the operator asks every gateway


def own_address() -> str:
    """This machine's address as others see it; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("198.51.100.1", 9))
        return str(probe.getsockname()[0])


class AnsweringServer(FakeServer):
    """Also answers chats, with the id that vLLM would make; requests for a version in ``broken`` fail."""

    def __init__(self, ip: str = "127.0.0.12", port: int = 8000) -> None:
        super().__init__(ip, port)
        self._public = ThreadingHTTPServer((own_address(), 0), self.handler)
        self._serving = threading.Thread(target=self._public.serve_forever, daemon=True)
        self.broken: set[str] = set()
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
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "tuneloop_gateway"], env=env, stdout=out, stderr=out)
    traffic = Traffic(world, port)
    try:
        wait_for("the gateway to listen", lambda: _listens(traffic), show=log.read_text)
        yield traffic
    finally:
        traffic.close()
        process.kill()
        process.wait()


def _listens(traffic: Traffic) -> bool:
    try:
        traffic.models()
    except httpx.TransportError:
        return False
    return True


def publish(world: World, name: str, letter: str) -> Obj:
    """A FineTuneJob that has published its adapter: a version of its own."""
    world.job(name)
    for stage in ("fetch", "check", "train"):
        world.succeed_stage(stage, name)
    artifact: dict[str, Any] = {
        "kind": "Adapter",
        "path": f"artifacts/{letter * 64}",
        "digest": f"sha256:{letter * 64}",
    }
    return world.succeed_stage("publish", name, artifact | {"bytes": 1})
