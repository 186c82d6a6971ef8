"""A namespace, operator processes against the real API server, and somebody who plays the Job controller and kubelet.

Statuses are written as the real controllers write them: the API server's own validation sees to that.
"""

import json
import os
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import yaml
from operator_api import Api, Obj, wait_for
from ports import free_port

FETCHED: Obj = {
    "modelUri": "hf://org/model@0123456789abcdef0123456789abcdef01234567",
    "modelPath": "models/org/model/0123456789abcdef0123456789abcdef01234567",
    "modelCommit": "0123456789abcdef0123456789abcdef01234567",
    "modelBytes": 1000,
    "datasetPath": "datasets/abc",
    "datasetDigest": "sha256:" + "a" * 64,
    "datasetBytes": 10,
}
CHECKED: Obj = {
    "format": "Chat",
    "rows": 100,
    "trainRows": 90,
    "validationRows": 10,
    "trainTokens": 50000,
    "trainedTokens": 30000,
    "validationTokens": 5000,
    "maxTokens": 900,
    "p50Tokens": 400,
    "p95Tokens": 800,
    "truncatedRows": 0,
    "template": "SpanFinder",
}
TRAINED: Obj = {
    "base": {"evalLoss": 4.2, "perplexity": 66.7, "samples": 10},
    "tuned": {"evalLoss": 2.5, "perplexity": 12.2, "samples": 10},
    "steps": 12,
    "epochs": 3.0,
    "tokens": 150000,
    "seconds": 100.0,
    "tokensPerSecond": 1500.0,
    "finalLoss": 2.4,
    "peakMemoryBytes": 10**9,
    "trainableParameters": 1000,
    "totalParameters": 100000,
    "resumes": 0,
    "curve": [[1, 4.0], [12, 2.4]],
}
PUBLISHED: Obj = {
    "kind": "Adapter",
    "path": "artifacts/" + "d" * 64,
    "digest": "sha256:" + "d" * 64,
    "bytes": 12345,
}
RESULTS = {"fetch": FETCHED, "check": CHECKED, "train": TRAINED, "publish": PUBLISHED}


@dataclass
class Operator:
    """One operator process."""

    process: subprocess.Popen[bytes]
    log: Path
    liveness: int
    metrics_port: int

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples that have these labels."""
        total = 0.0
        for line in httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10).text.splitlines():
            if line.startswith((f"{name} ", f"{name}{{")) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rpartition(" ")[2])
        return total

    def writes(self) -> float:
        return self.metric("tuneloop_api_writes_total")

    def health(self, path: str = "healthz") -> int:
        try:
            return httpx.get(f"http://127.0.0.1:{self.liveness}/{path}", timeout=5).status_code
        except httpx.HTTPError:
            return 0

    def leads(self) -> bool:
        try:
            return self.metric("tuneloop_leader") == 1.0
        except httpx.HTTPError:
            return False

    def wait_look(self, kind: str = "ModelDeployment") -> None:
        """Wait until it has looked at a resource of this kind."""
        looks = {"kind": kind, "outcome": "ok"}
        wait_for(f"a look at a {kind}", lambda: self.metric("tuneloop_reconcile_total", **looks) > 0, show=self.words)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, timeout: float = 40.0) -> int:
        """SIGTERM and wait; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        return self.process.wait(timeout)

    def words(self) -> str:
        return self.log.read_text()


@dataclass
class World:
    """One test's namespaces."""

    api: Api
    kubeconfig: Path
    folder: Path
    namespace: str = field(default_factory=lambda: f"op-{uuid.uuid4().hex[:8]}")
    operators: list[Operator] = field(default_factory=list)
    settings: Obj = field(default_factory=dict, init=False)  # of operators that are started from now on

    def __post_init__(self) -> None:
        self.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}})
        for name in ("default", "tuneloop-operator", "tuneloop-gateway"):  # no controller and no chart makes them
            account = {"name": name, "namespace": self.namespace}
            self.api.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
        self.settings = {
            "namespace": self.namespace,
            "namespaces": [self.namespace],
            "images": {"trainer": "localhost/tuneloop/trainer:t", "server": "localhost/tuneloop/server:t"},
            "progressIntervalSeconds": 0.5,
        }

    def start(
        self,
        *,
        kubeconfig: Path | None = None,
        leads: bool = True,
        pod: str = "",
        module: str = "tuneloop_operator",
        **environment: str,
    ) -> Operator:
        """Start an operator process; by default wait until it leads. ``pod`` names it: a restart keeps its name."""
        number = len(self.operators)
        settings = self.folder / "settings.yaml"
        settings.write_text(yaml.safe_dump(self.settings))
        liveness, metrics = free_port(), free_port()
        log = self.folder / f"operator-{number}.log"
        env = os.environ | {
            "KUBECONFIG": str(kubeconfig or self.kubeconfig),
            "TUNELOOP_SETTINGS": str(settings),
            "TUNELOOP_LIVENESS_PORT": str(liveness),
            "TUNELOOP_METRICS_PORT": str(metrics),
            "TUNELOOP_IDENTITY": pod or f"pod-{number}",
            "PYTHONPATH": str(Path(__file__).parent),  # where the operator of a later release lies
            **environment,
        }
        with log.open("wb") as out:
            process = subprocess.Popen([sys.executable, "-m", module], env=env, stderr=out, stdout=out)
        operator = Operator(process, log, liveness, metrics)
        self.operators.append(operator)
        if leads:
            wait_for("the operator to lead", operator.leads, show=operator.words)
        return operator

    def close(self) -> None:
        for operator in self.operators:
            if operator.process.poll() is None:
                operator.process.kill()
                operator.process.wait()

    # ---- resources ----

    def job(self, name: str = "one", labels: dict[str, str] | None = None, **spec: Any) -> Obj:
        """Make a FineTuneJob on CPU; ``spec`` overrides top-level fields."""
        body = {
            "model": {"uri": "hf://org/model"},
            "dataset": {"uri": "hf://datasets/org/data"},
            "resources": {"accelerators": 0},
        } | spec
        metadata = {"name": name, "namespace": self.namespace, "labels": labels or {}}
        return self.api.create(
            {"apiVersion": "tuneloop.dev/v1alpha1", "kind": "FineTuneJob", "metadata": metadata, "spec": body}
        )

    def status(self, name: str = "one", kind: str = "FineTuneJob") -> Obj:
        return dict(self.api.must(kind, self.namespace, name).get("status", {}))

    def condition(self, kind: str, name: str = "one", resource: str = "FineTuneJob") -> Obj | None:
        found = [item for item in self.status(name, resource).get("conditions", []) if item["type"] == kind]
        return found[0] if found else None

    def wait_condition(self, kind: str, name: str = "one", reason: str = "", resource: str = "FineTuneJob") -> Obj:
        def probe() -> Obj | None:
            found = self.condition(kind, name, resource)
            return found if found and found["status"] == "True" and reason in ("", found["reason"]) else None

        what = f"{kind} {reason} of {resource} {name}"
        return dict(wait_for(what, probe, show=lambda: self.status(name, resource)))

    # ---- the Job controller and the kubelet, played ----

    def wait_job(self, name: str, not_uid: str = "") -> Obj:
        def probe() -> Obj | None:
            found = self.api.get("Job", self.namespace, name)
            return found if found and found["metadata"]["uid"] != not_uid else None

        return dict(wait_for(f"Job {name}", probe))

    def make_pod(self, job: Obj, suffix: str = "a") -> Obj:
        """The pod that the Job controller would make."""
        name, template = job["metadata"]["name"], job["spec"]["template"]
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": name,
            "uid": job["metadata"]["uid"],
            "controller": True,
        }
        metadata = {
            "name": f"{name}-{suffix}-{job['metadata']['uid'][:4]}",
            "namespace": self.namespace,
            "labels": template["metadata"]["labels"],
            "ownerReferences": [owner],
        }
        return self.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})

    def pod_status(self, pod: Obj, status: Obj) -> Obj:
        metadata = pod["metadata"]
        return self.api.patch("Pod", metadata["namespace"], metadata["name"], {"status": status}, "status")

    def run_pod(self, pod: Obj, ip: str = "127.0.0.1") -> Obj:
        state = {"running": {"startedAt": now()}}
        status = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "containerStatuses": [container(pod, state)]}
        return self.pod_status(pod, status)

    def end_pod(self, pod: Obj, termination: Obj | None, code: int = 0, **more: Any) -> Obj:
        ended = {"exitCode": code, "startedAt": now(), "finishedAt": now(), "reason": "Error" if code else "Completed"}
        ended |= {"message": json.dumps(termination)} if termination else {}
        ended |= more
        phase = "Failed" if code else "Succeeded"
        return self.pod_status(pod, {"phase": phase, "containerStatuses": [container(pod, {"terminated": ended})]})

    def job_status(self, job: Obj, status: Obj) -> None:
        self.api.patch("Job", self.namespace, job["metadata"]["name"], {"status": status}, "status")

    def complete(self, job: Obj) -> None:
        started = job["metadata"]["creationTimestamp"]
        self.job_status(job, {"startTime": started, "conditions": [true("SuccessCriteriaMet", "CompletionsReached")]})
        conditions = [true("SuccessCriteriaMet", "CompletionsReached"), true("Complete", "CompletionsReached")]
        ended = {"startTime": started, "completionTime": now(), "succeeded": 1, "active": 0, "ready": 0}
        self.job_status(job, ended | {"conditions": conditions})

    def fail(self, job: Obj, reason: str = "PodFailurePolicy", message: str = "failed") -> None:
        started = job["metadata"]["creationTimestamp"]
        self.job_status(job, {"startTime": started, "conditions": [true("FailureTarget", reason, message)]})
        conditions = [true("FailureTarget", reason, message), true("Failed", reason, message)]
        self.job_status(job, {"startTime": started, "failed": 1, "active": 0, "ready": 0, "conditions": conditions})

    def succeed_stage(self, stage: str, name: str = "one", result: Obj | None = None) -> Obj:
        """A stage's pod runs and leaves its result, its Job completes."""
        job = self.wait_job(f"{name}-{stage}")
        pod = self.run_pod(self.make_pod(job))
        said = {"stage": stage, "outcome": "Succeeded", "result": result or RESULTS[stage]}
        self.end_pod(pod, said)
        self.complete(job)
        return job

    def fail_stage(
        self, stage: str, reason: str, message: str, name: str = "one", code: int = 42, not_uid: str = ""
    ) -> Obj:
        """A stage's pod fails with a user error, and its Job with it."""
        job = self.wait_job(f"{name}-{stage}", not_uid)
        pod = self.run_pod(self.make_pod(job))
        self.end_pod(pod, {"stage": stage, "outcome": "Failed", "reason": reason, "message": message}, code)
        self.fail(job)
        return job


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def true(kind: str, reason: str, message: str = "") -> Obj:
    return {
        "type": kind,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastProbeTime": now(),
        "lastTransitionTime": now(),
    }


def container(pod: Obj, state: Obj) -> Obj:
    spec = pod["spec"]["containers"][0]
    return {
        "name": spec["name"],
        "image": spec["image"],
        "imageID": "",
        "ready": "running" in state,
        "restartCount": 0,
        "started": "running" in state,
        "state": state,
    }
