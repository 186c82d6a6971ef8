"""Every bad input gets a clear answer in real pods, and loses nothing: the table of issue and README, line by line."""

from collections.abc import Iterator
from typing import Any

import pytest
from e2e_kube import GENEROUS, Kube, condition, is_true
from e2e_world import NAMESPACE, fine_tune_job, pods_of, token_secret

pytestmark = pytest.mark.usefixtures("world", "nothing_left")


@pytest.fixture(scope="module")
def nothing_left(kube: Kube) -> Iterator[None]:
    """What stalls is tried again for ever: take it away, so that later tests see a calm operator."""
    yield
    for name in ("no-model", "no-revision", "no-access", "gated", "bad-lines", "empty", "over-quota", "gpu-a", "gpu-b"):
        kube.delete("ftj", name, NAMESPACE)


def stalled(kube: Kube, name: str, reason: str, kind: str = "ftj") -> str:
    """Wait until the resource is Stalled for this reason; return the message."""

    def seen() -> bool:
        found = condition(kube.get(kind, name, NAMESPACE), "Stalled")
        return found.get("status") == "True" and found.get("reason") == reason

    def explain() -> str:
        return f"conditions are {((kube.get(kind, name, NAMESPACE) or {}).get('status') or {}).get('conditions')}"

    kube.wait_for(f"{kind} {name} to be Stalled/{reason}", seen, explain=explain)
    message: str = condition(kube.get(kind, name, NAMESPACE), "Stalled")["message"]
    return message


def job_with(name: str, **spec: Any) -> dict[str, Any]:
    """The usual job with some blocks of the spec replaced."""
    job = fine_tune_job(name)
    job["spec"] |= spec
    return job


def test_all_the_bad_sources_at_once(kube: Kube) -> None:
    """One wait for many: the pods run side by side, and each answer is checked in its own words."""
    secret = {"credentialsSecret": "wrong-token"}
    kube.apply(token_secret("wrong-token", "hf_wrong-and-never-printed"))
    private = "hf://tuneloop/private"
    cases = {
        "no-model": (job_with("no-model", model={"uri": "hf://tuneloop/absent"}), "ModelNotFound", "tuneloop/absent"),
        "no-revision": (
            job_with("no-revision", model={"uri": "hf://tuneloop/tiny", "revision": "v9"}),
            "RevisionNotFound",
            "v9",
        ),
        "no-access": (job_with("no-access", model={"uri": private} | secret), "AccessDenied", private),
        "gated": (
            job_with("gated", model={"uri": "hf://tuneloop/gated"}),
            "GatedModelNotAccepted",
            "tuneloop/gated",
        ),
        "bad-lines": (
            job_with("bad-lines", dataset={"uri": "hf://datasets/tuneloop/bad-lines"}),
            "DatasetInvalid",
            "line 3",
        ),
        "empty": (job_with("empty", dataset={"uri": "hf://datasets/tuneloop/empty"}), "DatasetInvalid", "empty"),
    }
    kube.apply(*[job for job, _, _ in cases.values()])
    for name, (_, reason, words) in cases.items():
        message = stalled(kube, name, reason)
        assert words in message, f"{name}: {message}"
        assert "never-printed" not in kube.run("describe", "ftj", name, "-n", NAMESPACE)
        assert kube.get("job", f"{name}-train", NAMESPACE) is None


def test_a_mended_token_heals_without_touching_the_resource(kube: Kube) -> None:
    generation = (kube.get("ftj", "no-access", NAMESPACE) or {})["metadata"]["generation"]
    kube.run(
        "patch",
        "secret",
        "wrong-token",
        "-n",
        NAMESPACE,
        "--type=merge",
        "-p",
        '{"stringData":{"token":"right-token"}}',
    )

    def fetched() -> bool:
        status = (kube.get("ftj", "no-access", NAMESPACE) or {})["status"]
        return any(s["name"] == "fetch" and s["state"] == "Succeeded" for s in status["stages"])

    kube.wait_for("no-access to fetch with its mended token", fetched)
    kube.run("patch", "ftj", "no-access", "-n", NAMESPACE, "--type=merge", "-p", '{"spec":{"suspend":true}}')
    assert generation == 1
    kube.delete("ftj", "no-access", NAMESPACE)


def test_quota_refusal_is_lifted_with_its_number(kube: Kube) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "no-pods", "namespace": NAMESPACE},
        "spec": {"hard": {"requests.cpu": "1m"}},
    }
    kube.apply(quota)
    try:
        kube.apply(fine_tune_job("over-quota"))

        def said() -> str:
            conditions = ((kube.get("ftj", "over-quota", NAMESPACE) or {}).get("status") or {}).get("conditions") or []
            return next((c["message"] for c in conditions if "quota no-pods" in c["message"]), "")

        message = kube.wait_for("the quota's refusal in a condition", said)
        assert "asked for requests.cpu=250m" in message
        assert "of requests.cpu=1m" in message
    finally:
        kube.delete("resourcequota", "no-pods", NAMESPACE)
        kube.delete("ftj", "over-quota", NAMESPACE)


def test_accelerators_are_placed_queued_and_refused(kube: Kube) -> None:
    """A fake capacity on the node's status makes the real scheduler place one pod, and say why two wait."""
    node = kube.run("get", "nodes", "-o", "name").strip()
    wanting = [job_with(name, resources={"accelerators": 1}) for name in ("gpu-a", "gpu-b")]
    for job in wanting:
        job["spec"]["training"]["maxSteps"] = 3
    kube.apply(*wanting)

    def unschedulable() -> bool:
        found = [condition(kube.get("ftj", name, NAMESPACE), "Reconciling") for name in ("gpu-a", "gpu-b")]
        return all("nvidia.com/gpu" in each.get("message", "") for each in found)

    kube.wait_for("the missing GPU to be named", unschedulable)
    _set_gpus(kube, node, 1)
    try:
        kube.wait_for("one of the two to be placed", lambda: len(_placed(kube)) == 1)
        done = lambda: all(is_true(kube.get("ftj", n, NAMESPACE), "Complete") for n in ("gpu-a", "gpu-b"))  # noqa: E731
        kube.wait_for("both to complete, one after the other", done, timeout=GENEROUS)
    finally:
        _set_gpus(kube, node, 0)
        for name in ("gpu-a", "gpu-b"):
            kube.delete("ftj", name, NAMESPACE)


def test_deployment_names_the_job_that_it_waits_for(kube: Kube) -> None:
    deployment = {
        "apiVersion": "tuneloop.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "waits", "namespace": NAMESPACE},
        "spec": {
            "model": {"uri": "hf://tuneloop/tiny"},
            "adapters": [{"name": "later", "from": {"fineTuneJob": "not-there-yet"}}],
            "resources": {"accelerators": 1},
        },
    }
    kube.apply(deployment)

    def said() -> str:
        conditions = ((kube.get("mdep", "waits", NAMESPACE) or {}).get("status") or {}).get("conditions") or []
        return next((c["message"] for c in conditions if "not-there-yet" in c["message"]), "")

    kube.wait_for("the absent job to be named", said)
    kube.delete("mdep", "waits", NAMESPACE)


def _set_gpus(kube: Kube, node: str, count: int) -> None:
    patch = f'{{"status":{{"capacity":{{"nvidia.com/gpu":"{count}"}},"allocatable":{{"nvidia.com/gpu":"{count}"}}}}}}'
    kube.run("patch", node, "--subresource=status", "--type=merge", "-p", patch)


def _placed(kube: Kube) -> list[str]:
    names = ("gpu-a", "gpu-b")
    return [n for n in names if any(p["spec"].get("nodeName") for p in pods_of(kube, n, "train"))]
