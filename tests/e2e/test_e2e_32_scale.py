"""Replicas by real load, in real pods on real vLLM: 0, 1, 2 and 0 again, and no request fails on the way."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from e2e_kube import Kube, condition
from e2e_world import API_KEY, NAMESPACE, gateway_url, model_deployment

NAME = "elastic"
SCALED = "scaled"
DELAY = "20s"


@pytest.fixture(scope="module")
def asleep(kube: Kube, world: None) -> Iterator[None]:
    """A deployment that was seen to start once and has gone to sleep for want of requests."""
    manifest = model_deployment(NAME, adapters=[])
    manifest["spec"]["scaling"] = {
        "minReplicas": 0,
        "maxReplicas": 2,
        "target": {"ongoingRequests": 2},
        "scaleDownDelay": DELAY,
    }
    kube.apply(manifest)
    kube.wait_for("the deployment to sleep", lambda: _sleeps(kube), timeout=900, explain=lambda: str(_status(kube)))
    yield
    kube.delete("mdep", NAME, NAMESPACE, "--wait=false")


class Load:
    """Some clients that stream one answer after the other, and remember what went wrong."""

    def __init__(self, url: str, clients: int) -> None:
        self._client = openai.OpenAI(base_url=url, api_key=API_KEY, max_retries=0, timeout=600)
        self._stop = threading.Event()
        self.answers, self.errors = 0, list[str]()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(600)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                stream = self._client.completions.create(model=NAME, prompt="A", max_tokens=64, stream=True)
                list(stream)
                self.answers += 1
            except openai.APIError as error:
                self.errors.append(str(error))
                time.sleep(1)


def test_zero_one_two_zero_and_no_request_fails(kube: Kube, asleep: None) -> None:
    words = condition(kube.get("mdep", NAME, NAMESPACE), "Ready")
    assert (words["status"], words["message"]) == ("True", "asleep: wakes on the first request")
    url = f"{gateway_url(kube)}/{NAMESPACE}/v1"
    explain = lambda: str(_status(kube))  # noqa: E731
    with Load(url, 1) as first:
        kube.wait_for("the held request's answer", lambda: first.answers or first.errors, explain=explain)
        assert not first.errors
        with Load(url, 5) as more:
            kube.wait_for("a second replica", lambda: _status(kube).get("readyReplicas") == 2, explain=explain)
            answered = first.answers + more.answers
            kube.wait_for("answers by both", lambda: first.answers + more.answers > answered + 10, explain=explain)
    assert (first.errors, more.errors) == ([], [])
    kube.wait_for("the deployment to sleep again", lambda: _sleeps(kube), explain=explain)
    moves = [(item.get("fromReplicas", 0), item.get("toReplicas", 0)) for item in _status(kube)["scaling"]["history"]]
    assert moves[0] == (1, 0)
    assert (0, 1) in moves
    assert (1, 2) in moves or (0, 2) in moves
    assert moves[-1][1] == 0


def test_the_cold_start_is_told_by_phase(kube: Kube, asleep: None) -> None:
    start = _status(kube)["coldStart"]
    assert [phase["name"] for phase in start["phases"]] == ["scheduled", "image", "model", "engine", "warmUp"]
    assert start["seconds"] > 0
    events = {event["reason"] for event in kube.list("events", NAMESPACE) if event["involvedObject"]["name"] == NAME}
    assert {"ScaledToZero", "Woken"} <= events


def _status(kube: Kube, name: str = NAME) -> dict[str, Any]:
    found: dict[str, Any] = (kube.get("mdep", name, NAMESPACE) or {}).get("status") or {}
    return found


def _sleeps(kube: Kube) -> bool:
    """Whether it says so, and its last pod has gone."""
    ready = condition(kube.get("mdep", NAME, NAMESPACE), "Ready")
    return ready.get("reason") == "ScaledToZero" and not _status(kube).get("replicas")


def test_the_clusters_own_horizontal_pod_autoscaler_writes_replicas(kube: Kube, world: None) -> None:
    """It has no metrics here, but below its minimum it acts without: through /scale, as with any metric."""
    manifest = model_deployment(SCALED, adapters=[])
    manifest["spec"]["scaling"] = {"mode": "External", "replicas": 1}
    kube.apply(manifest)
    kube.apply(_autoscaler(minimum=2))
    try:
        autoscaler = lambda: str(kube.get("hpa", SCALED, NAMESPACE))  # noqa: E731
        written = lambda: (kube.get("mdep", SCALED, NAMESPACE) or {})["spec"]["scaling"]["replicas"] == 2  # noqa: E731
        kube.wait_for("the autoscaler to ask for two replicas", written, explain=autoscaler)
        kube.wait_for("two server pods", lambda: len(_pods(kube)) == 2, explain=lambda: str(_status(kube, SCALED)))
        able = condition(kube.get("hpa", SCALED, NAMESPACE), "AbleToScale")
        assert able["status"] == "True", able
    finally:
        kube.delete("hpa", SCALED, NAMESPACE)
        kube.delete("mdep", SCALED, NAMESPACE, "--wait=false")


def _autoscaler(minimum: int) -> dict[str, Any]:
    kind = {"apiVersion": "tuneloop.dev/v1alpha1", "kind": "ModelDeployment", "name": SCALED}
    target = {"type": "Utilization", "averageUtilization": 80}
    metric = {"type": "Resource", "resource": {"name": "cpu", "target": target}}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": SCALED, "namespace": NAMESPACE},
        "spec": {"scaleTargetRef": kind, "minReplicas": minimum, "maxReplicas": 3, "metrics": [metric]},
    }


def _pods(kube: Kube) -> list[dict[str, Any]]:
    return kube.list("pods", NAMESPACE, f"tuneloop.dev/modeldeployment={SCALED},app.kubernetes.io/component=server")
