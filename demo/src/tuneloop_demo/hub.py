"""Puts the hub mirror into a cluster and fills it: a Deployment of the server, a claim for its content.

Content is copied in through ``kubectl exec`` and renamed, so a repository appears whole; what is there already, by the
commit that the mirror itself names, is not copied again. Never makes a repository private unless its folder says so.
"""

from pathlib import Path
from typing import Any

from tuneloop_demo.mirror.repos import RepoType, read_folder
from tuneloop_demo.target import Obj, Target, pipe

NAME = "hub-mirror"
NAMESPACE = "tuneloop-hub"
ENDPOINT = f"http://{NAME}.{NAMESPACE}.svc.cluster.local"
LABELS = {"app.kubernetes.io/name": NAME}


def namespace(name: str) -> Obj:
    """Return a namespace in which Pod Security "restricted" is enforced."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def _object(api: str, kind: str, spec: Obj) -> Obj:
    metadata = {"name": NAME, "namespace": NAMESPACE, "labels": LABELS}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}


def _container(image: str) -> Obj:
    return {
        "name": NAME,
        "image": image,
        "ports": [{"name": "http", "containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 2},
        "resources": {"requests": {"cpu": "25m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": name, "mountPath": f"/{name}"} for name in ("content", "tmp")],
    }


def _pod(image: str) -> Obj:
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(image)],
        "volumes": [
            {"name": "content", "persistentVolumeClaim": {"claimName": NAME}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
        ],
    }


def manifests(image: str, size: str = "4Gi") -> list[Obj]:
    """Return what the mirror is made of, its namespace first; ``size`` is that of its claim."""
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
    deployment = {
        "replicas": 1,
        "strategy": {"type": "Recreate"},  # the claim serves one pod at a time
        "selector": {"matchLabels": LABELS},
        "template": {"metadata": {"labels": LABELS}, "spec": _pod(image)},
    }
    service = {"selector": LABELS, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}
    return [
        namespace(NAMESPACE),
        _object("v1", "PersistentVolumeClaim", claim),
        _object("apps/v1", "Deployment", deployment),
        _object("v1", "Service", service),
    ]


def deploy(target: Target, image: str) -> None:
    """Put the mirror into the cluster and wait until it answers."""
    target.apply(*manifests(image))
    target.wait_for_rollout(NAME, NAMESPACE)


def _exec(target: Target, script: str, *arguments: str) -> str:
    return target.call("exec", "-n", NAMESPACE, f"deployment/{NAME}", "--", "sh", "-euc", script, "sh", *arguments)


def _held_commit(target: Target, kind: RepoType, repo_id: str) -> str:
    """Return the commit of the repository in the cluster, by the mirror's own code; empty when it is not there."""
    script = 'if test -d "$3"; then python -m tuneloop_demo.mirror.commit "$1" "$2" "$3"; fi'
    return _exec(target, script, kind, repo_id, f"/content/{kind}/{repo_id}").strip()


def push(target: Target, kind: RepoType, repo_id: str, folder: Path) -> str:
    """Make the mirror hold the folder as a repository; return its commit."""
    commit = read_folder(kind, repo_id, folder).commit
    if _held_commit(target, kind, repo_id) == commit:
        return commit
    aside = f"/content/.incoming-{commit}"
    _exec(target, 'rm -rf "$1" && mkdir -p "$1"', aside)
    untar: list[str] = ["exec", "-i", "-n", NAMESPACE, f"deployment/{NAME}", "--", "tar", "-C", aside, "-xf", "-"]
    pipe(target, folder, *untar)
    script = 'mkdir -p "$(dirname "$2")" && rm -rf "$2" && mv "$1" "$2"'
    _exec(target, script, aside, f"/content/{kind}/{repo_id}")
    return commit


def openapi_documents(target: Target) -> dict[str, Any]:
    """Return the cluster's OpenAPI v3 documents of built-in groups, by path (``apis/batch/v1``)."""
    paths = sorted(target.raw("/openapi/v3")["paths"])
    return {path: target.raw(f"/openapi/v3/{path}") for path in paths if is_built_in(path)}


def is_built_in(path: str) -> bool:
    """Whether a document is of a group that every cluster has: ``api/v1``, ``apis/batch/v1``, ``apis/*.k8s.io/v1``."""
    parts = path.split("/")
    if parts[0] == "api":
        return len(parts) == 2
    return len(parts) == 3 and parts[0] == "apis" and ("." not in parts[1] or parts[1].endswith(".k8s.io"))
