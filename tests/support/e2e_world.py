"""The world of the e2e tier: names, manifests of small jobs and deployments, and looks at what happened."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import e2e_datasets
from e2e_kube import Kube

from tuneloop_demo import hub
from tuneloop_demo.target import Target
from tuneloop_demo.tiny_model import write_tiny_dataset, write_tiny_model
from tuneloop_localcluster.paths import cache

NAMESPACE = "e2e"
SYSTEM = "tuneloop-system"
API_KEY = "tl-e2e-key-that-opens-only-the-test-cluster"
RIGHT_TOKEN = "right-token"
GROUP = "tuneloop.dev/v1alpha1"
LONG = 1200  # steps: half a minute on a fast machine, so that a test meets the training while it runs
SMALL = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "3Gi"}}


def fine_tune_job(name: str, *, steps: int = 200) -> dict[str, Any]:
    """A job on the tiny model: some hundredths of a second a step, its gate easy to pass."""
    return {
        "apiVersion": GROUP,
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "model": {"uri": "hf://tuneloop/tiny", "credentialsSecret": "hub-token"},
            "dataset": {"uri": "hf://datasets/tuneloop/colours"},
            "method": {"lora": {"rank": 8, "alpha": 16}},
            "training": {
                "epochs": 1000,
                "maxSteps": steps,
                "learningRate": "1e-2",
                "tokensPerStep": 256,
                "maxSequenceLength": 256,
            },
            "resources": {"accelerators": 0},
            "pod": {"resources": SMALL},
            "checkpoint": {"interval": "5s"},
            "evaluation": {
                "maxSamples": 16,
                "generations": 2,
                "maxNewTokens": 8,
                "gates": [{"metric": "evalLoss", "ratioToBaseMax": "0.95"}],
            },
        },
    }


def long_job(name: str) -> dict[str, Any]:
    """A job that a test meets while it trains: half a minute on a fast machine, never above two on a slow one."""
    job = fine_tune_job(name, steps=LONG)
    job["spec"]["training"]["maxDuration"] = "2m"
    return job


def adapter_job(name: str) -> dict[str, Any]:
    """A job that ends soon, for its adapter."""
    return fine_tune_job(name, steps=20)


def model_deployment(name: str, adapters: list[str]) -> dict[str, Any]:
    """The tiny model served on CPU with the adapters of these jobs, opened to ``API_KEY``."""
    digest = hashlib.sha256(API_KEY.encode()).hexdigest()
    return {
        "apiVersion": GROUP,
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "model": {"uri": "hf://tuneloop/tiny"},
            "adapters": [{"name": each, "from": {"fineTuneJob": each}} for each in adapters],
            "engine": {"maxModelLength": 256, "lora": {"maxRank": 8, "maxActive": 2, "maxCached": 4}},
            "resources": {"accelerators": 0},
            "pod": {
                "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "5Gi"}}
            },
            "access": {"keys": [{"name": "e2e", "hash": f"sha256:{digest}"}]},
        },
    }


def token_secret(name: str, token: str) -> dict[str, Any]:
    """A Secret with a hub token under the key that Tuneloop documents."""
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"token": token}}


def pods_of(kube: Kube, job: str, stage: str) -> list[dict[str, Any]]:
    """Pods of one stage of a FineTuneJob that have not ended."""
    pods = kube.list("pods", NAMESPACE, f"tuneloop.dev/finetunejob={job},tuneloop.dev/stage={stage}")
    return [pod for pod in pods if pod["status"]["phase"] in {"Pending", "Running"}]


def gateway_url(kube: Kube) -> str:
    """The gateway as this machine reaches it: the local cluster's Services have a route here."""
    service = kube.get("service", "tuneloop-gateway", SYSTEM)
    assert service, "the chart's gateway Service is gone"
    return f"http://{service['spec']['clusterIP']}"


def audit_creates(namespace: str, resource: str, prefix: str, since: str) -> dict[str, int]:
    """How often each object was created, by the API server's own audit log: what was doubled shows here.

    ``since`` is an RFC 3339 time in UTC; earlier runs in a namespace of the same name do not count.
    """
    counted: Counter[str] = Counter()
    for line in cache().full.audit_log.read_text().splitlines():
        event = json.loads(line)
        about = event.get("objectRef") or {}
        made = event["verb"] == "create" and event.get("responseStatus", {}).get("code") == 201
        late = event["requestReceivedTimestamp"] >= since.removesuffix("Z")
        if made and late and about.get("namespace") == namespace and about.get("resource") == resource:
            counted[about.get("name", "")] += 1
    return {name: count for name, count in counted.items() if name.startswith(prefix)}


def probe_pod(kube: Kube, base: str, paths: list[str]) -> dict[str, int]:
    """HTTP status of GET for each path, asked by the Python of the hub's pod, which carries no token."""
    script = (
        "import json,sys,urllib.request,urllib.error\n"
        "def code(url):\n"
        "    try:\n        return urllib.request.urlopen(url, timeout=30).status\n"
        "    except urllib.error.HTTPError as error:\n        return error.code\n"
        "print(json.dumps({p: code(sys.argv[1] + p) for p in sys.argv[2:]}))\n"
    )
    target = ("exec", "-n", hub.NAMESPACE, f"deployment/{hub.NAME}", "--", "python", "-c", script)
    answers: dict[str, int] = json.loads(kube.run(*target, base, *paths))
    return answers


def fill_hub(target: Target, folder: Path) -> None:
    """Give the hub the tiny model in three degrees of openness, and datasets good and bad."""
    tiny = write_tiny_model(folder / "tiny")
    hub.push(target, "models", "tuneloop/tiny", tiny)
    for name, policy in {
        "private": {"private": True, "tokens": [RIGHT_TOKEN]},
        "gated": {"gated": True, "tokens": [RIGHT_TOKEN]},
    }.items():
        copy = write_tiny_model(folder / name)
        (copy / ".mirror.json").write_text(json.dumps(policy))
        hub.push(target, "models", f"tuneloop/{name}", copy)
    hub.push(target, "datasets", "tuneloop/colours", write_tiny_dataset(folder / "colours", rows=256))
    for name, rows in e2e_datasets.DATASETS.items():
        _push_rows(target, name, rows(), folder)
    quiz = _write_rows(folder / "quiz" / "test.jsonl", e2e_datasets.quiz())
    (quiz / "colour-quiz.yaml").write_text(e2e_datasets.QUIZ)
    hub.push(target, "datasets", "tuneloop/quiz", quiz)
    good = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    for name, text in {"bad-lines": good * 2 + '{"messages": \n' + good, "empty": ""}.items():
        (folder / name).mkdir()
        (folder / name / "train.jsonl").write_text(text)
        hub.push(target, "datasets", f"tuneloop/{name}", folder / name)


def _push_rows(target: Target, name: str, rows: list[dict[str, Any]], folder: Path) -> None:
    hub.push(target, "datasets", f"tuneloop/{name}", _write_rows(folder / name / "train.jsonl", rows))


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The folder of the file that was written."""
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.parent
