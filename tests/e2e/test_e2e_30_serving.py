"""A ModelDeployment on real vLLM: waits for its adapter in words, answers an OpenAI client, survives what it must."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from e2e_kube import Kube, condition, is_true
from e2e_world import API_KEY, NAMESPACE, SYSTEM, adapter_job, gateway_url, model_deployment, probe_pod

NAME = "tiny-chat"


@pytest.fixture(scope="module")
def served(kube: Kube, world: None) -> Iterator[dict[str, Any]]:
    """One engine for the whole file; made before its adapter's job has run, to see it wait."""
    if kube.get("ftj", "answers", NAMESPACE) is None:  # this file runs alone
        kube.apply(adapter_job("answers"))
    kube.apply(model_deployment(NAME, adapters=["answers", "later"]))

    def waiting() -> bool:
        return "later" in condition(kube.get("mdep", NAME, NAMESPACE), "Reconciling").get("message", "")

    kube.wait_for("the deployment to say that it waits for the job 'later'", waiting)
    kube.apply(adapter_job("later"))
    ready = lambda: is_true(kube.get("mdep", NAME, NAMESPACE), "Ready")  # noqa: E731
    explain = lambda: str((kube.get("mdep", NAME, NAMESPACE) or {}).get("status"))  # noqa: E731
    kube.wait_for("the deployment to be Ready with both adapters", ready, timeout=900, explain=explain)
    return kube.get("mdep", NAME, NAMESPACE) or {}


@pytest.fixture
def client(kube: Kube, served: dict[str, Any]) -> openai.OpenAI:
    """The real client, through the gateway."""
    return openai.OpenAI(base_url=f"{gateway_url(kube)}/{NAMESPACE}/v1", api_key=API_KEY, max_retries=0, timeout=300)


def test_lists_base_and_adapters(client: openai.OpenAI) -> None:
    assert {m.id for m in client.models.list()} == {NAME, "answers", "later"}


def test_chats(client: openai.OpenAI) -> None:
    for model in (NAME, "answers"):
        reply = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "What is a pod?"}], max_tokens=8
        )
        assert reply.usage
        assert 1 <= reply.usage.completion_tokens <= 8


def test_streams_token_by_token(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="answers", messages=[{"role": "user", "content": "What is a pod?"}], max_tokens=16, stream=True
    )
    chunks = list(stream)
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) > 1
    assert all(c.usage is None for c in chunks), "a client that did not ask for usage got a usage chunk"


def test_completions(client: openai.OpenAI) -> None:
    assert client.completions.create(model=NAME, prompt="A pod is", max_tokens=4).choices[0].text is not None


def test_errors_have_openai_shape(kube: Kube, served: dict[str, Any]) -> None:
    url = f"{gateway_url(kube)}/{NAMESPACE}/v1/chat/completions"
    key = {"Authorization": f"Bearer {API_KEY}"}
    body = {"model": NAME, "messages": [{"role": "user", "content": "x"}]}
    cases = [
        (httpx.post(url, json=body), 401),
        (httpx.post(url, json=body, headers={"Authorization": "Bearer wrong"}), 401),
        (httpx.post(url, json=body | {"model": "absent"}, headers=key), 404),
        (httpx.post(url, content=b"{broken", headers=key), 400),
        (httpx.post(url, content=b'{"model": "' + b"x" * 5_000_000, headers=key), 413),
    ]
    for response, status in cases:
        assert response.status_code == status, response.text
        assert {"message", "type", "code"} <= response.json()["error"].keys()


def test_pod_without_the_token_reaches_nothing_but_health(kube: Kube, served: dict[str, Any]) -> None:
    paths = ["/health", "/v1/models", "/v1/chat/completions", "/metrics", "/tuneloop/status", "/docs", "/openapi.json"]
    answers = probe_pod(kube, f"http://{NAME}-server.{NAMESPACE}.svc:8000", paths)
    assert answers.pop("/health") == 200
    assert all(code in {401, 404} for code in answers.values()), answers


def test_latency_reaches_the_status(kube: Kube, client: openai.OpenAI) -> None:
    for _ in range(3):
        list(
            client.chat.completions.create(
                model="answers", messages=[{"role": "user", "content": "Hello"}], max_tokens=12, stream=True
            )
        )

    def measured() -> dict[str, Any]:
        latency: dict[str, Any] = ((kube.get("mdep", NAME, NAMESPACE) or {})["status"]).get("latency") or {}
        return latency if latency.get("ttftP95") and latency.get("tpotP95") else {}

    assert kube.wait_for("TTFT and TPOT in the status", measured)["requests"] >= 1


def test_gateway_pod_killed_and_the_next_request_answers(kube: Kube, client: openai.OpenAI) -> None:
    pods = kube.list("pods", SYSTEM, "app.kubernetes.io/component=gateway")
    kube.run("delete", "pod", pods[0]["metadata"]["name"], "-n", SYSTEM, "--wait=true")

    def answers() -> bool:
        try:
            return bool(client.completions.create(model=NAME, prompt="A", max_tokens=1).choices)
        except openai.APIError:
            return False

    kube.wait_for("an answer after one gateway was killed", answers)
    restarted = lambda: len(_ready(kube, "gateway")) == 2  # noqa: E731
    kube.wait_for("both gateways to be ready again", restarted)


def test_operator_killed_and_no_model_restarted(kube: Kube, served: dict[str, Any]) -> None:
    before = _server_pods(kube)
    for pod in kube.list("pods", SYSTEM, "app.kubernetes.io/component=operator"):
        kube.run("delete", "pod", pod["metadata"]["name"], "-n", SYSTEM, "--wait=true", "--grace-period=1")
    kube.wait_for("both operators to be ready again", lambda: len(_ready(kube, "operator")) == 2)
    kube.run("annotate", "mdep", NAME, "-n", NAMESPACE, f"example.com/poked={int(time.time())}", "--overwrite")
    kube.wait_for("the deployment to be Ready", lambda: is_true(kube.get("mdep", NAME, NAMESPACE), "Ready"))
    assert _server_pods(kube) == before


def test_describe_and_get_read_well(kube: Kube, served: dict[str, Any]) -> None:
    table = kube.run("get", "ftj,mdep", "-n", NAMESPACE)
    assert "STAGE" in table
    assert "TTFT" in table
    assert f"/{NAMESPACE}/v1" in table


def _server_pods(kube: Kube) -> dict[str, int]:
    pods = kube.list("pods", NAMESPACE, f"tuneloop.dev/modeldeployment={NAME},app.kubernetes.io/component=server")
    return {p["metadata"]["uid"]: sum(c["restartCount"] for c in p["status"]["containerStatuses"]) for p in pods}


def _ready(kube: Kube, component: str) -> list[str]:
    pods = kube.list("pods", SYSTEM, f"app.kubernetes.io/component={component}")
    return [p["metadata"]["name"] for p in pods if is_true(p, "Ready") and not p["metadata"].get("deletionTimestamp")]
