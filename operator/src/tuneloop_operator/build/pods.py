"""What all our pods have in common: restricted security, a read-only root, the store by subPath.

Never a command of a user.
"""

from typing import Any

from tuneloop_core.api.pod import PodSettings
from tuneloop_core.constants import RUN_AS_ID, STORE_CLAIM
from tuneloop_core.settings import ImageSettings

Obj = dict[str, Any]

STORE_VOLUME = "store"


def pod_security() -> Obj:
    """Pod-level security context: Pod Security "restricted", one user for everything on the store."""
    return {
        "runAsNonRoot": True,
        "runAsUser": RUN_AS_ID,
        "runAsGroup": RUN_AS_ID,
        "fsGroup": RUN_AS_ID,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> Obj:
    """Container-level security context."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }


def base_pod(images: ImageSettings, pod: PodSettings) -> Obj:
    """Fields of every pod spec; containers and volumes are the caller's."""
    secrets = [{"name": name} for name in images.pull_secrets] + [ref.to_dict() for ref in pod.image_pull_secrets]
    spec: Obj = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
    }
    return spec | ({"imagePullSecrets": secrets} if secrets else {})


def placement(pod: PodSettings) -> Obj:
    """Where the user wants the pod to run; absent fields are left out."""
    fields = {
        "nodeSelector": dict(pod.node_selector),
        "tolerations": [toleration.to_dict() for toleration in pod.tolerations],
        "affinity": pod.affinity.to_dict() if pod.affinity else {},
        "priorityClassName": pod.priority_class_name,
        "runtimeClassName": pod.runtime_class_name,
    }
    return {key: value for key, value in fields.items() if value}


def store_volume() -> Obj:
    """The namespace's store."""
    return {"name": STORE_VOLUME, "persistentVolumeClaim": {"claimName": STORE_CLAIM}}


def store_mount(path: str, folder: str, *, read_only: bool) -> Obj:
    """One folder of the store, and nothing else of it."""
    return {"name": STORE_VOLUME, "mountPath": path, "subPath": folder, "readOnly": read_only}


def scratch(name: str, path: str, size: str, *, memory: bool = False) -> tuple[Obj, Obj]:
    """(volume, mount) of an emptyDir; in memory it counts against the container's memory limit."""
    source: Obj = {"sizeLimit": size} | ({"medium": "Memory"} if memory else {})
    return {"name": name, "emptyDir": source}, {"name": name, "mountPath": path}


def env(values: dict[str, str]) -> list[Obj]:
    """Environment in a stable order."""
    return [{"name": name, "value": value} for name, value in sorted(values.items())]
