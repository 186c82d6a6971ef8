"""Operator, model server and gateway killed with ``kill -9`` under load: what fails is counted, and nothing else does.

Two engines serve, clients stream one answer after the other. A stream that is cut had begun before the kill on what was
killed; every other request is answered. The counts are printed (``pytest -s``, and in the report of a failure).
"""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
from e2e_kube import Kube, is_true
from e2e_node import kill_container
from e2e_world import API_KEY, NAMESPACE, SYSTEM, gateway_url, model_deployment

ENGINE = "tiny-chat"
CLIENTS = 6
TOKENS = 48


@dataclass(frozen=True)
class Failure:
    """A request that did not end as it should."""

    started: float  # seconds of time.monotonic, as all times here
    begun: bool  # whether the head of an answer had come: from there on nobody may try again unasked
    words: str


class Load:
    """Clients that stream until they are left, and remember each answer's start and each failure."""

    def __init__(self, url: str, retries: int) -> None:
        self._url, self._retries = url, retries
        self._stop = threading.Event()
        self.answers: list[float] = []
        self.failures: list[Failure] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(CLIENTS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(300)

    def _run(self) -> None:
        client = openai.OpenAI(base_url=self._url, api_key=API_KEY, max_retries=self._retries, timeout=120)
        while not self._stop.is_set():
            started, begun = time.monotonic(), False
            try:
                stream = client.completions.create(model=ENGINE, prompt="A", max_tokens=TOKENS, stream=True)
                begun = True
                list(stream)
                self.answers.append(started)
            except (openai.APIError, httpx.HTTPError) as error:
                self.failures.append(Failure(started, begun, f"{type(error).__name__}: {error}"))

    def answered_since(self, moment: float) -> int:
        """Answers to requests that were sent after ``moment``."""
        return sum(started > moment for started in self.answers)


@pytest.fixture(scope="module")
def two(kube: Kube, world: None) -> Iterator[None]:
    """The engine of test_e2e_30, twice."""
    if kube.get("mdep", ENGINE, NAMESPACE) is None:  # this file runs alone
        kube.apply(model_deployment(ENGINE, adapters=[]))
    _scale(kube, {"minReplicas": 2, "maxReplicas": 2})
    kube.wait_for("two replicas", lambda: len(_servers(kube)) == 2, timeout=900, explain=lambda: str(_status(kube)))
    yield
    _scale(kube, None)


def _scale(kube: Kube, scaling: dict[str, int] | None) -> None:
    body = json.dumps({"spec": {"scaling": scaling}})
    kube.run("patch", "mdep", ENGINE, "-n", NAMESPACE, "--type=merge", "-p", body)


def _status(kube: Kube) -> dict[str, Any]:
    status: dict[str, Any] = (kube.get("mdep", ENGINE, NAMESPACE) or {}).get("status") or {}
    return status


def _ready(kube: Kube, namespace: str, labels: str) -> list[dict[str, Any]]:
    """A pod that is ending may be Ready to its last second, and takes no request any more: it does not count."""
    staying = (pod for pod in kube.list("pods", namespace, labels) if not pod["metadata"].get("deletionTimestamp"))
    return [pod for pod in staying if is_true(pod, "Ready")]


def _servers(kube: Kube) -> list[dict[str, Any]]:
    return _ready(kube, NAMESPACE, f"tuneloop.dev/modeldeployment={ENGINE},app.kubernetes.io/component=server")


def _parts(kube: Kube, component: str) -> list[dict[str, Any]]:
    return _ready(kube, SYSTEM, f"app.kubernetes.io/component={component}")


def _killed(kube: Kube, load: Load, pods: list[dict[str, Any]]) -> float:
    """Under load, kill these pods' processes and go on until later requests are answered; when all were dead."""
    failures = lambda: str(load.failures)  # noqa: E731
    kube.wait_for("every client's first answer", lambda: len(load.answers) >= CLIENTS, explain=failures)
    for pod in pods:
        assert kill_container(pod), f"no process of {pod['metadata']['name']} was found"
    moment = time.monotonic()
    more = lambda: load.answered_since(moment) >= 4 * CLIENTS  # noqa: E731
    kube.wait_for("answers after the kill", more, explain=failures)
    return moment


def _told(what: str, load: Load) -> str:
    words = f"{what} killed: {len(load.answers)} answered, {len(load.failures)} failed: {load.failures}"
    print(words)
    return words


def test_operators_killed_and_no_request_notices(kube: Kube, two: None) -> None:
    with Load(f"{gateway_url(kube)}/{NAMESPACE}/v1", retries=0) as load:
        _killed(kube, load, _parts(kube, "operator"))
    words = _told("both operators", load)
    assert not load.failures, words
    kube.wait_for("both operators to be ready again", lambda: len(_parts(kube, "operator")) == 2)


def test_server_killed_and_only_streams_that_it_had_begun_are_cut(kube: Kube, two: None) -> None:
    """Cut with an error in OpenAI's shape. What had not begun went to the other one, without the client's doing."""
    with Load(f"{gateway_url(kube)}/{NAMESPACE}/v1", retries=0) as load:
        moment = _killed(kube, load, _servers(kube)[:1])
    words = _told("a model server", load)
    assert len(load.failures) <= CLIENTS, words
    for each in load.failures:
        assert each.begun, words
        assert each.started <= moment, words
        assert "The model server failed" in each.words, words
    kube.wait_for(
        "two replicas again", lambda: len(_servers(kube)) == 2, timeout=600, explain=lambda: str(_status(kube))
    )


def test_gateway_killed_and_a_client_that_tries_again_is_answered(kube: Kube, two: None) -> None:
    """Only what was being streamed through that gateway is cut; OpenAI's client repeats the rest by itself.

    It tries more often than by default: each try may meet the dead one until the node has noticed, in a second or two.
    """
    with Load(f"{gateway_url(kube)}/{NAMESPACE}/v1", retries=5) as load:
        moment = _killed(kube, load, _parts(kube, "gateway")[:1])
    words = _told("a gateway", load)
    assert len(load.failures) <= CLIENTS, words
    for each in load.failures:
        assert each.begun, words
        assert each.started <= moment, words
    kube.wait_for("both gateways to be ready again", lambda: len(_parts(kube, "gateway")) == 2)
