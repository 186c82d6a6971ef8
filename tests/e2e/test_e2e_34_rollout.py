"""The product's loop on real pods: tune, gate, canary, promote; and four that end badly, each in its own way.

A gate that fails, a rank that the engine does not take, feedback that drops, requests that fail. The engine is the one
of test_e2e_30. What fails requests is a setting of the engine: an adapter of vLLM 0.32 cannot, even weights of NaN are
answered with 200, or 400 where log-probabilities are asked for, and a 400 is the client's. Versions that are slow,
crash or run out of memory are in tests/apiserver/test_operator_rollout_bad.py.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from e2e_kube import Kube, condition, is_true
from e2e_world import API_KEY, NAMESPACE, adapter_job, gateway_url, model_deployment

ENGINE = "tiny-chat"
NAME = "rolled"
LABEL = {"story": "rollout"}
CHAT = {"model": NAME, "max_tokens": 2, "messages": [{"role": "user", "content": "What is a pod?"}]}
USERS = 24
ONE_AT_A_TIME = "--max-num-queued-reqs=1"  # and a request for n answers counts n times
CANARY = {
    "steps": [50],
    "interval": "5s",
    "minRequests": 10,
    "limits": {"ttftRatio": "1000", "tpotRatio": "1000", "errorRate": "0.5"},
}


def labelled(name: str, gate: dict[str, str] | None = None) -> dict[str, Any]:
    job = adapter_job(name)
    job["metadata"]["labels"] = LABEL
    if gate:
        job["spec"]["evaluation"]["gates"] = [gate]
    return job


@pytest.fixture(scope="module")
def served(kube: Kube, world: None) -> Iterator[None]:
    """The engine, with one more name whose versions come by label; its first version is ready."""
    if kube.get("mdep", ENGINE, NAMESPACE) is None:  # this file runs alone
        kube.apply(model_deployment(ENGINE, adapters=[]))
    adapters = (kube.get("mdep", ENGINE, NAMESPACE) or {})["spec"].get("adapters", [])
    kube.apply(labelled("rollout-first"))
    added = [*adapters, {"name": NAME, "from": {"selector": {"matchLabels": LABEL}}}]
    patch(kube, {"adapters": added, "rollout": {"strategy": "Canary", "canary": CANARY}})
    ready = lambda: _adapter(kube).get("state") == "Ready"  # noqa: E731
    kube.wait_for("the first version to be loaded", ready, timeout=900, explain=lambda: str(_status(kube)))
    yield
    # The strategy stays: by another one, the spec that comes back would be a third revision, and the engine start anew.
    patch(kube, {"adapters": adapters, "engine": {"extraArgs": None}})


def patch(kube: Kube, spec: dict[str, Any]) -> None:
    kube.run("patch", "mdep", ENGINE, "-n", NAMESPACE, "--type=merge", "-p", json.dumps({"spec": spec}))


def _status(kube: Kube) -> dict[str, Any]:
    status: dict[str, Any] = (kube.get("mdep", ENGINE, NAMESPACE) or {}).get("status") or {}
    return status


def _adapter(kube: Kube) -> dict[str, Any]:
    return next((each for each in _status(kube).get("adapters", []) if each["name"] == NAME), {})


def _rollout(kube: Kube) -> dict[str, Any]:
    return dict(_status(kube).get("rollout") or {})


@contextmanager
def door(kube: Kube) -> Iterator[httpx.Client]:
    """The namespace's API, with a key."""
    key = {"Authorization": f"Bearer {API_KEY}"}
    with httpx.Client(base_url=f"{gateway_url(kube)}/{NAMESPACE}/v1/", headers=key, timeout=300) as client:
        yield client


def chats(client: httpx.Client, **options: Any) -> Iterator[httpx.Response]:
    """One chat of each user."""
    for number in range(USERS):
        yield client.post("chat/completions", json=CHAT | {"user": f"user-{number}"} | options)


def drive(kube: Kube, phase: str, score: Callable[[str], int]) -> dict[str, Any]:
    """Users who chat and score until the rollout ends so; no request may fail."""
    with door(kube) as client:

        def probe() -> dict[str, Any]:
            canary = f"{NAME}@{_rollout(kube).get('canary', '')}"
            for answer in chats(client):
                assert answer.status_code == 200, answer.text
                body = answer.json()
                scored = {"id": body["id"], "score": score(body["model"] if body["model"] == canary else "")}
                assert client.post("feedback", json=scored).status_code in (200, 404), "404: it went meanwhile"
            found = _rollout(kube)
            return found if found.get("phase") == phase else {}

        return dict(kube.wait_for(f"the rollout to be {phase}", probe, explain=lambda: str(_status(kube))))


def test_a_job_whose_gate_fails_is_never_loaded(kube: Kube, served: None) -> None:
    before = _adapter(kube)["digest"]
    kube.apply(labelled("rollout-bad", gate={"metric": "evalLoss", "max": "0.001"}))
    failed = lambda: is_true(kube.get("ftj", "rollout-bad", NAMESPACE), "Failed")  # noqa: E731
    kube.wait_for("the gate to fail", failed)
    assert condition(kube.get("ftj", "rollout-bad", NAMESPACE), "Failed")["reason"] == "GateFailed"
    assert _adapter(kube)["digest"] == before
    assert not _rollout(kube)


def test_a_version_of_too_great_a_rank_is_refused_and_the_one_before_serves(kube: Kube, served: None) -> None:
    before = _adapter(kube)["digest"]
    job = labelled("rollout-wide")
    job["spec"]["method"]["lora"] = {"rank": 16, "alpha": 32}
    kube.apply(job)
    complete = lambda: is_true(kube.get("ftj", "rollout-wide", NAMESPACE), "Complete")  # noqa: E731
    kube.wait_for("the job to publish", complete)
    told = lambda: "rank" in _adapter(kube).get("message", "")  # noqa: E731
    kube.wait_for("the refusal in the status", told, explain=lambda: str(_status(kube)))
    found = _adapter(kube)
    assert "rollout-wide" in found["message"], found
    assert "maxRank" in found["message"], found
    assert (found["digest"], found["state"]) == (before, "Ready"), "the version before serves"
    assert not _rollout(kube)


def test_a_better_version_is_promoted(kube: Kube, served: None) -> None:
    before = _adapter(kube)["digest"]
    job = labelled("rollout-better")
    job["spec"]["training"]["maxSteps"] = 25  # other weights, another digest
    kube.apply(job)
    loading = lambda: _rollout(kube).get("phase") == "Canary"  # noqa: E731
    kube.wait_for("the new version to take its share", loading, explain=lambda: str(_status(kube)))
    assert is_true(kube.get("mdep", ENGINE, NAMESPACE), "Ready")
    drive(kube, "Promoted", score=lambda canary: 1)
    kube.wait_for("the new version in the status", lambda: _adapter(kube)["digest"] != before)


def test_a_version_that_users_like_less_is_rolled_back(kube: Kube, served: None) -> None:
    serving = _adapter(kube)["digest"]
    job = labelled("rollout-worse")
    job["spec"]["training"]["maxSteps"] = 30
    patch(kube, {"rollout": {"canary": {"interval": "1h"}}})
    kube.apply(job)
    kube.wait_for("the next version to take its share", lambda: _rollout(kube).get("phase") == "Canary")
    found = drive(kube, "RolledBack", score=lambda canary: 0 if canary else 1)
    assert found["reason"] == "Feedback"
    assert condition(kube.get("mdep", ENGINE, NAMESPACE), "Stalled")["reason"] == "RolledBack"
    assert _adapter(kube)["digest"] == serving, "the version before serves"


def test_a_version_that_fails_requests_is_rolled_back(kube: Kube, served: None) -> None:
    """Users ask for two answers at once. The next engine takes one: it starts and is ready, and only traffic tells."""
    patch(kube, {"engine": {"extraArgs": [ONE_AT_A_TIME]}})
    taking = lambda: (_rollout(kube).get("kind"), _rollout(kube).get("phase")) == ("Revision", "Canary")  # noqa: E731
    explain = lambda: str(_status(kube))  # noqa: E731
    kube.wait_for("the next revision to take its share", taking, timeout=900, explain=explain)
    seen: set[int] = set()
    with door(kube) as client:

        def ask() -> set[int]:
            return {answer.status_code for answer in chats(client, model=ENGINE, n=2)}

        def rolled_back() -> dict[str, Any]:
            seen.update(ask())
            found = _rollout(kube)
            return found if found.get("phase") == "RolledBack" else {}

        found = kube.wait_for("the rollout to be RolledBack", rolled_back, explain=explain)
        assert seen == {200, 503}
        assert (found["reason"], found["name"], found["weight"]) == ("ErrorRate", ENGINE, 0)
        stable, canary = found["measured"]["stable"], found["measured"]["canary"]
        assert stable["errors"] == 0
        assert canary["errors"] == canary["requests"] >= CANARY["minRequests"]
        kube.wait_for("every user to be answered by the one before", lambda: ask() == {200}, explain=explain)
    words = f"{found['canary']} was rolled back, {found['stable']} serves"
    told = lambda: words in condition(kube.get("mdep", ENGINE, NAMESPACE), "Stalled").get("message", "")  # noqa: E731
    kube.wait_for("the rollback in the condition Stalled", told, explain=explain)
    gone = lambda: kube.get("deployment", f"{ENGINE}-{found['canary']}", NAMESPACE) is None  # noqa: E731
    kube.wait_for("the failing revision's pods to be freed", gone, explain=explain)
    assert is_true(kube.get("mdep", ENGINE, NAMESPACE), "Ready"), "the version before serves"
