"""One ModelDeployment and what the cluster knows of it, for decisions without a cluster."""

from datetime import UTC, datetime
from typing import Any

from tuneloop_core.api import ModelDeployment, ModelStatus
from tuneloop_core.api.modeldeployment_status import RevisionStatus
from tuneloop_core.serving import AdapterState, ServerStatus
from tuneloop_operator.policy import adapters, reasons, revisions
from tuneloop_operator.policy.serving import ServingFacts
from tuneloop_operator.policy.verdicts import State, Verdict

Obj = dict[str, Any]
NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
DIGEST = "sha256:" + "d" * 64
MODEL = ModelStatus(uri="hf://o/m@abc", commit="abc", path="models/o/m/abc")
DONE = Verdict(State.DONE, reasons.SUCCEEDED, "there")
RESOLVED = [adapters.Resolved("bot", DIGEST, "artifacts/x")]


def deployment(status: Obj | None = None, **spec: Any) -> ModelDeployment:
    body = {"model": {"uri": "hf://o/m"}, "adapters": [{"name": "bot", "from": {"fineTuneJob": "one"}}]} | spec
    metadata = {"name": "chat", "namespace": "team", "uid": "owner", "generation": 3}
    return ModelDeployment.model_validate({"metadata": metadata, "spec": body, "status": status or {}})


def revision(**more: Any) -> RevisionStatus:
    made = deployment()
    fields = {"name": "r1", "image": "server:1", "hash": revisions.fingerprint(made, "server:1", MODEL.path)}
    return RevisionStatus(**{**fields, "replicas": 1, "ready_replicas": 1, "ready": True, **more})


def k8s_deployment(number: int, ready: int, replicas: int = 1, generation: int = 1) -> Obj:
    return {
        "metadata": {
            "name": f"chat-r{number}",
            "generation": generation,
            "labels": {"tuneloop.dev/revision": f"r{number}"},
            "annotations": {"tuneloop.dev/fingerprint": "f"},
            "ownerReferences": [{"uid": "owner"}],
        },
        "spec": {"replicas": replicas, "template": {"spec": {"containers": [{"image": "server:1"}]}}},
        "status": {"observedGeneration": 1, "readyReplicas": ready},
    }


def pod(ip: str = "10.0.0.1", *, ready: bool = True) -> Obj:
    return {
        "metadata": {"name": "p", "uid": "p", "labels": {"tuneloop.dev/revision": "r1"}},
        "spec": {"containers": [{"name": "main"}]},
        "status": {
            "phase": "Running",
            "podIP": ip,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


def server(state: str = "Loaded", message: str = "") -> ServerStatus:
    loaded = AdapterState(engine_name="bot@dddddddddddd", state=state, message=message)  # type: ignore[arg-type]
    return ServerStatus(ready=True, draining=False, model="chat", adapters=[loaded], phases={"imports": 2.0})


def facts(**more: Any) -> ServingFacts:
    base: Obj = {
        "now": NOW,
        "model": DONE,
        "model_status": MODEL,
        "resolved": RESOLVED,
        "revisions": [revision()],
        "judged": k8s_deployment(1, 1),
        "pods": [pod()],
        "servers": {"10.0.0.1": server()},
        "replicas": 1,
        "url": "http://g/team/v1",
    }
    return ServingFacts(**base | more)
