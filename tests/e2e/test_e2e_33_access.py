"""Who may call, and how much, in real pods: 403 for a model not opened, 429 with OpenAI's headers, usage by key.

The engine is the one of test_e2e_30, which gets a second key and a limit for the time of this file.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from e2e_kube import Kube
from e2e_world import API_KEY, NAMESPACE, SYSTEM, adapter_job, gateway_url, model_deployment

ENGINE, ADAPTER = "tiny-chat", "answers"
LIMIT = 4  # requests a minute, over all gateways
SECRET = f"tl-{secrets.token_hex(32)}"
HOLDER = f"app-{secrets.token_hex(4)}"  # its own in each run: a gateway that stayed has counted earlier ones
SERIES = re.compile(r"^tuneloop_gateway_key_(\w+)_total\{(.*)\} (\S+)$", re.M)


@pytest.fixture(scope="module")
def limited(kube: Kube, world: None) -> Iterator[None]:
    """The engine with a key that opens only the adapter, and a limit."""
    if kube.get("mdep", ENGINE, NAMESPACE) is None:  # this file runs alone
        kube.apply(adapter_job(ADAPTER), model_deployment(ENGINE, adapters=[ADAPTER]))
    before = (kube.get("mdep", ENGINE, NAMESPACE) or {})["spec"]["access"]
    key = {"name": HOLDER, "hash": f"sha256:{hashlib.sha256(SECRET.encode()).hexdigest()}", "models": [ADAPTER]}
    _patch(kube, {"keys": [*before["keys"], key], "limits": {"requestsPerMinute": LIMIT}})
    ready = lambda: _adapters(kube).get(ADAPTER) == "Ready"  # noqa: E731
    kube.wait_for("the adapter to be loaded", ready, timeout=900, explain=lambda: str(_adapters(kube)))
    kube.wait_for("every gateway to know the key", lambda: all(_lists(pod) for pod in _gateways(kube)))
    yield
    _patch(kube, before | {"limits": None})


def _patch(kube: Kube, access: dict[str, Any]) -> None:
    body = json.dumps({"spec": {"access": access}})
    kube.run("patch", "mdep", ENGINE, "-n", NAMESPACE, "--type=merge", "-p", body)


def _adapters(kube: Kube) -> dict[str, str]:
    status = (kube.get("mdep", ENGINE, NAMESPACE) or {}).get("status") or {}
    return {each["name"]: each["state"] for each in status.get("adapters", [])}


def _gateways(kube: Kube) -> list[dict[str, Any]]:
    return kube.list("pods", SYSTEM, "app.kubernetes.io/component=gateway")


def _lists(pod: dict[str, Any]) -> bool:
    """Whether this gateway opens the adapter, and nothing else, to the key."""
    port = next(p["containerPort"] for p in pod["spec"]["containers"][0]["ports"] if p["name"] == "http")
    url = f"http://{pod['status']['podIP']}:{port}/{NAMESPACE}/v1/models"
    answer = httpx.get(url, headers={"Authorization": f"Bearer {SECRET}"}, timeout=30)
    return answer.status_code == 200 and [each["id"] for each in answer.json()["data"]] == [ADAPTER]


@pytest.fixture(scope="module")
def client(kube: Kube, limited: None) -> openai.OpenAI:
    """OpenAI's, which does not try again, so that every answer counts."""
    return openai.OpenAI(base_url=f"{gateway_url(kube)}/{NAMESPACE}/v1", api_key=SECRET, max_retries=0, timeout=300)


@pytest.fixture(scope="module")
def used(client: openai.OpenAI) -> tuple[list[Any], openai.RateLimitError]:
    """Answers until the minute's were used up, and the error that said so."""
    answers: list[Any] = []
    for _ in range(20 * LIMIT):
        try:
            answers.append(client.completions.with_raw_response.create(model=ADAPTER, prompt="A pod is", max_tokens=2))
        except openai.RateLimitError as error:
            return answers, error
    raise AssertionError(f"{len(answers)} requests were answered with a limit of {LIMIT} a minute")


def test_a_model_that_the_key_does_not_open_is_403(client: openai.OpenAI) -> None:
    with pytest.raises(openai.PermissionDeniedError) as refused:
        client.completions.create(model=ENGINE, prompt="A", max_tokens=1)
    assert refused.value.code == "model_not_allowed"
    assert ADAPTER in str(refused.value), "it lists what the key opens"


def test_beyond_the_limit_is_429_with_openais_headers(used: tuple[list[Any], openai.RateLimitError]) -> None:
    answers, error = used
    assert answers, "a minute's worth may come at once"
    for headers in (answers[0].headers, error.response.headers):
        assert headers["x-ratelimit-limit-requests"] == str(LIMIT)
        assert re.fullmatch(r"(\d+m)?\d+m?s", headers["x-ratelimit-reset-requests"])
    assert error.response.headers["x-ratelimit-remaining-requests"] in ("0", "1"), "a part of one is no request"
    assert int(error.response.headers["retry-after"]) >= 1
    assert error.code == "rate_limit_exceeded"
    assert HOLDER in str(error)


def test_one_key_used_up_leaves_the_other_alone(kube: Kube, used: object) -> None:
    client = openai.OpenAI(base_url=f"{gateway_url(kube)}/{NAMESPACE}/v1", api_key=API_KEY, max_retries=0, timeout=300)
    assert client.completions.create(model=ENGINE, prompt="A", max_tokens=1).choices


def test_usage_is_counted_by_key_and_model(kube: Kube, used: tuple[list[Any], openai.RateLimitError]) -> None:
    usage = [answer.parse().usage for answer in used[0]]
    want = {
        "requests": len(usage),
        "limited": 1,
        "tokens prompt": sum(each.prompt_tokens for each in usage),
        "tokens completion": sum(each.completion_tokens for each in usage),
    }
    assert _counted(kube) == want


def _counted(kube: Kube) -> dict[str, float]:
    """What all gateways together counted of the key and the adapter."""
    counted: dict[str, float] = {}
    for pod in _gateways(kube):
        text = httpx.get(f"http://{pod['status']['podIP']}:9090/metrics", timeout=30).text
        for name, listed, value in SERIES.findall(text):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', listed))
            if (labels["key"], labels["model"], labels["deployment"]) == (HOLDER, ADAPTER, ENGINE):
                what = f"{name} {labels.get('type', '')}".strip()
                counted[what] = counted.get(what, 0) + float(value)
    return counted


def test_the_access_log_has_a_line_for_each(kube: Kube, used: tuple[list[Any], openai.RateLimitError]) -> None:
    answered = len(used[0])
    full = lambda: len(_lines(kube)) > answered  # noqa: E731 - they are written once a second
    kube.wait_for("the lines of the access log", full, explain=lambda: str(_lines(kube)))
    lines = _lines(kube)
    assert sorted(line["status"] for line in lines) == [200] * answered + [429]
    usage = [answer.parse().usage for answer in used[0]]
    assert sorted(line["completionTokens"] for line in lines if line["status"] == 200) == sorted(
        each.completion_tokens for each in usage
    )
    for line in lines:
        assert (line["namespace"], line["deployment"], line["model"]) == (NAMESPACE, ENGINE, ADAPTER)
        assert line["engineName"].startswith(f"{ADAPTER}@")
        assert SECRET not in json.dumps(line)
        assert "A pod is" not in json.dumps(line), "a prompt in the log"


def _lines(kube: Kube) -> list[dict[str, Any]]:
    """Lines of the access log that name the key."""
    logs = [kube.run("logs", pod["metadata"]["name"], "-n", SYSTEM) for pod in _gateways(kube)]
    return [json.loads(line) for text in logs for line in text.splitlines() if f'"key":"{HOLDER}"' in line]
