"""The Deployment of one revision of a ModelDeployment. Pure; made once, later only its replicas change.

An upgraded operator may build other pods than the one before it: that must restart no model, so what a revision was
made of stays until the spec changes.
"""

from dataclasses import dataclass
from typing import Any

from tuneloop_core.api.modeldeployment import ModelDeployment
from tuneloop_core.constants import (
    LABEL_COMPONENT,
    LABEL_MODELDEPLOYMENT,
    LABEL_REVISION,
    MODEL_FOLDER,
    MODELDEPLOYMENT_KIND,
    SERVER_PORT,
    STORE_ARTIFACTS,
)
from tuneloop_core.settings import Settings
from tuneloop_operator import names
from tuneloop_operator.build.meta import child_metadata, labels
from tuneloop_operator.build.pods import (
    base_pod,
    container_security,
    env,
    placement,
    scratch,
    store_mount,
    store_volume,
)
from tuneloop_operator.build.quantities import Amounts, resources, threads
from tuneloop_operator.build.sizes import accelerator_sizes

Obj = dict[str, Any]

CONTAINER = "main"
CONFIG_FOLDER = "/etc/tuneloop"
CONFIG_FILE = "server.json"
ADAPTERS_FILE = "adapters.json"
GUARD_FILE = "guard.json"
COMPONENT = "server"
LEAVING_SECONDS = 10  # beyond the drain: for the engine to end
START_SECONDS = 3600  # a large model from slow storage; the readiness message says what it does meanwhile
SHARED_MEMORY_GIB = 1
SHARED_MEMORY_PER_ACCELERATOR_GIB = 2
"""Of several: each one's process has message rings of its own (16 to 24 MiB times ten), and NCCL's buffers grow with
peers and channels where the accelerators reach each other through the host. Too little ends in a bare bus error; being
a limit of what may be used, it reserves nothing."""
SCRATCH = "8Gi"

SERVE_CPU: dict[str, Amounts] = {"requests": {"cpu": "1", "memory": "4Gi"}, "limits": {"memory": "8Gi"}}
"""Serving on CPU: a model below a billion parameters."""


@dataclass(frozen=True)
class Revision:
    """What one revision is made of, beside the spec."""

    number: int
    image: str
    model_path: str
    replicas: int

    @property
    def label(self) -> str:
        """As in the pods' label and in ``status.revisions``."""
        return f"r{self.number}"


def config_key(label: str) -> str:
    """Key of the revision's server.json in the ConfigMap: an older revision's pods must not start with a newer one."""
    return f"server-{label}.json"


def adapters_key(label: str = "") -> str:
    """Key of the revision's adapters.json; without a label that of what serves now."""
    return f"adapters-{label}.json" if label else "adapters.json"


def selector_labels(name: str) -> dict[str, str]:
    """Pods of all revisions: for the Service, the budget and the scale subresource."""
    return {LABEL_MODELDEPLOYMENT: name, LABEL_COMPONENT: COMPONENT}


def build_deployment(deployment: ModelDeployment, revision: Revision, settings: Settings, annotations: Obj) -> Obj:
    """The revision's Deployment; ``annotations`` let the operator recognise it later."""
    owner = deployment.metadata
    metadata = child_metadata(MODELDEPLOYMENT_KIND, owner, names.revision(owner.name, revision.number), COMPONENT)
    selector = {LABEL_MODELDEPLOYMENT: owner.name, LABEL_REVISION: revision.label}
    own = labels(MODELDEPLOYMENT_KIND, owner.name, COMPONENT) | {LABEL_REVISION: revision.label}
    pod = deployment.spec.pod
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata | {"labels": own, "annotations": annotations},
        "spec": {
            "replicas": revision.replicas,
            "selector": {"matchLabels": selector},
            "progressDeadlineSeconds": START_SECONDS,
            "template": {
                "metadata": {"labels": dict(pod.labels) | own, "annotations": dict(pod.annotations)},
                "spec": _pod_spec(deployment, revision, settings),
            },
        },
    }


def _pod_spec(deployment: ModelDeployment, revision: Revision, settings: Settings) -> Obj:
    pod, name = deployment.spec.pod, deployment.metadata.name
    tmp_volume, tmp_mount = scratch("tmp", "/tmp", SCRATCH)  # noqa: S108 - a mount, not a file
    shared = shared_memory(deployment.spec.resources.accelerators)
    shm_volume, shm_mount = scratch("shm", "/dev/shm", shared, memory=True)  # noqa: S108
    return {
        **base_pod(settings.images, pod),
        **placement(pod),
        "terminationGracePeriodSeconds": settings.server.drain_seconds + LEAVING_SECONDS,
        "containers": [_container(deployment, revision, [tmp_mount, shm_mount], settings)],
        "volumes": [store_volume(), _config_volume(name, revision), tmp_volume, shm_volume],
    }


def _config_volume(name: str, revision: Revision) -> Obj:
    """Named items of the ConfigMap; the kubelet updates them in the running pod."""
    items = [{"key": config_key(revision.label), "path": CONFIG_FILE}]
    items += [{"key": adapters_key(revision.label), "path": ADAPTERS_FILE}, {"key": GUARD_FILE, "path": GUARD_FILE}]
    return {"name": "config", "configMap": {"name": names.server(name), "items": items}}


def _container(deployment: ModelDeployment, revision: Revision, scratch_mounts: list[Obj], settings: Settings) -> Obj:
    sizes = server_sizes(deployment)
    values = {
        "TUNELOOP_SERVER_CONFIG": f"{CONFIG_FOLDER}/{CONFIG_FILE}",
        "TUNELOOP_SERVER_GRACE_SECONDS": str(settings.server.drain_seconds),
        "HOME": "/tmp",  # noqa: S108 - the pod's own emptyDir
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    count = threads(sizes["limits"])
    return {
        "name": CONTAINER,
        "image": revision.image,
        "imagePullPolicy": settings.images.pull_policy,
        "env": env(values | ({"OMP_NUM_THREADS": str(count)} if count else {})),
        "ports": [{"name": "http", "containerPort": SERVER_PORT}],
        "resources": sizes,
        "securityContext": container_security(),
        "startupProbe": _probe(period=2, failures=START_SECONDS // 2),
        "readinessProbe": _probe(period=2, failures=2),
        "livenessProbe": _probe(period=10, failures=12),
        "volumeMounts": [
            store_mount(MODEL_FOLDER, revision.model_path, read_only=True),
            store_mount("/artifacts", STORE_ARTIFACTS, read_only=True),
            {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
            *scratch_mounts,
        ],
    }


def _probe(period: int, failures: int) -> Obj:
    return {
        "httpGet": {"path": "/health", "port": "http"},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": 5,
    }


def shared_memory(accelerators: int) -> str:
    """Size of /dev/shm, a Kubernetes quantity."""
    several = accelerators > 1
    return f"{SHARED_MEMORY_PER_ACCELERATOR_GIB * accelerators if several else SHARED_MEMORY_GIB}Gi"


def server_sizes(deployment: ModelDeployment) -> dict[str, dict[str, str]]:
    """Requests and limits of a server: the user's first, the accelerators on top."""
    wanted, asked = deployment.spec.pod.resources, deployment.spec.resources
    devices: Amounts = {asked.accelerator_resource: asked.accelerators} if asked.accelerators else {}
    defaults = accelerator_sizes(asked.accelerators) if asked.accelerators else SERVE_CPU
    return resources(defaults, wanted.requests, wanted.limits, devices)
