"""Rights and calm: what the operator may do, and that it does nothing when nothing happens."""

import json
import re
import time

import httpx
import pytest
from e2e_kube import Kube, is_true
from e2e_world import NAMESPACE, SYSTEM

CALM_SECONDS = 300  # the promise: the count of API writes does not move for five minutes
pytestmark = pytest.mark.usefixtures("world")


def test_no_verb_on_secrets(kube: Kube) -> None:
    for account in ("tuneloop-operator", "tuneloop-gateway"):
        for verb in ("get", "list", "watch", "create", "update", "patch", "delete"):
            for namespace in (SYSTEM, NAMESPACE):
                answer = kube.run(
                    *("auth", "can-i", verb, "secrets", "-n", namespace),
                    *("--as", f"system:serviceaccount:{SYSTEM}:{account}"),
                    check=False,
                )
                assert answer.strip() == "no", f"{account} may {verb} secrets in {namespace}"


def test_no_write_while_nothing_happens(kube: Kube) -> None:
    kube.wait_for("all resources to be calm", lambda: not _busy(kube))
    time.sleep(75)  # one round of the once-a-minute latency write may still be due
    before = _writes(kube)
    assert before, "the operator reports no API write at all, although it has made Jobs"
    time.sleep(CALM_SECONDS)
    after = _writes(kube)
    assert after == before


def _busy(kube: Kube) -> list[str]:
    items = json.loads(kube.run("get", "ftj,mdep", "-n", NAMESPACE, "-o", "json"))["items"]
    return [i["metadata"]["name"] for i in items if is_true(i, "Reconciling")]


def _writes(kube: Kube) -> dict[str, float]:
    """All series of tuneloop_api_writes_total but the Lease's, which is renewed by its nature; per pod."""
    found = {}
    for pod in kube.list("pods", SYSTEM, "app.kubernetes.io/component=operator"):
        text = httpx.get(f"http://{pod['status']['podIP']}:9090/metrics", timeout=30).text
        for labels, value in re.findall(r"^tuneloop_api_writes_total\{(.*)\} (\S+)$", text, re.M):
            if "lease" not in labels.lower():
                found[f"{pod['metadata']['name']} {labels}"] = float(value)
    return found
