"""Talks to the served models through the gateway with the ``openai`` client, and measures what a client feels.

Never keeps or prints the key.
"""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import openai

from tuneloop_demo.chart import SYSTEM
from tuneloop_demo.errors import DemoError
from tuneloop_demo.target import Target

SERVICE = "tuneloop-gateway"
MAX_TOKENS = 64
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Answer:
    """One streamed answer. ``ttft`` and ``tpot`` are seconds; ``tpot`` is None for a single token."""

    text: str
    ttft: float
    tpot: float | None


@contextmanager
def gateway_url(target: Target) -> Iterator[str]:
    """Yield the gateway's URL as this machine reaches it: by its address, or through a port-forward."""
    if target.is_local:
        service = target.get("service", SERVICE, SYSTEM)
        if service is None:
            raise DemoError(f"there is no Service {SYSTEM}/{SERVICE}: was the chart uninstalled meanwhile?")
        yield f"http://{service['spec']['clusterIP']}"
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*target.kubectl, "-n", SYSTEM, "port-forward", f"service/{SERVICE}", f"{port}:80"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as forward:
        try:
            _wait_for_port(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            forward.terminate()


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise DemoError(f"kubectl port-forward to {SYSTEM}/{SERVICE} did not open its port within a minute.")


def connect(url: str, namespace: str, key: str) -> openai.OpenAI:
    """Return a client of one namespace's door."""
    return openai.OpenAI(base_url=f"{url}/{namespace}/v1", api_key=key, timeout=300)


def wait_for_key(client: openai.OpenAI, names: set[str]) -> None:
    """Wait until the gateways know the key and the names: they learn both by watching."""
    deadline, problem = time.monotonic() + PATIENCE_SECONDS, ""
    while time.monotonic() < deadline:
        try:
            listed = {model.id for model in client.models.list()}
        except openai.APIError as error:
            problem = str(error)
        else:
            problem = f"it lists {sorted(listed)}"
            if names <= listed:
                return
        time.sleep(1)
    raise DemoError(f"the gateway does not serve {sorted(names)} within a minute: {problem}")


def ask(client: openai.OpenAI, model: str, question: str) -> Answer:
    """Ask one question, streamed; raise ``DemoError`` when the gateway refuses or nothing comes back."""
    started = time.monotonic()
    times: list[float] = []
    pieces: list[str] = []
    try:
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            max_tokens=MAX_TOKENS,
            temperature=0,
            stream=True,
        )
        for chunk in stream:
            piece = chunk.choices[0].delta.content if chunk.choices else None
            if piece:
                times.append(time.monotonic())
                pieces.append(piece)
    except openai.APIError as error:
        raise DemoError(f"the gateway refused a question to {model}: {error}") from error
    if not times:
        raise DemoError(f"{model} answered a question with no text at all.")
    tpot = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None
    return Answer("".join(pieces).strip(), times[0] - started, tpot)
