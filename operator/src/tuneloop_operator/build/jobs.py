"""The frame of every stage Job: retries, what counts as one, the pod around the container.

Never knows a stage's rights.
"""

from dataclasses import dataclass, field
from typing import Any

from tuneloop_core.api.pod import LocalObjectReference, PodSettings
from tuneloop_core.constants import (
    EXIT_PEER_LOST,
    EXIT_TERMINATED,
    EXIT_USER_ERROR,
    LABEL_STAGE,
    QUEUE_LABEL,
    STAGE_INPUT_ENV,
    TERMINATION_LOG,
)
from tuneloop_core.settings import Settings
from tuneloop_core.stages import Stage, Wire
from tuneloop_operator.build.deadline import BACKSTOP_SECONDS
from tuneloop_operator.build.pods import base_pod, container_security, env, placement, scratch, store_volume
from tuneloop_operator.build.quantities import threads

Obj = dict[str, Any]

CONTAINER = "main"
CPU_STAGE_RETRIES = 3
GRACE_SECONDS = 30
DEADLINE_SECONDS = {Stage.FETCH: 6 * 3600, Stage.CHECK: 2 * 3600, Stage.PUBLISH: 2 * 3600}
SCRATCH = "8Gi"


@dataclass(frozen=True)
class JobParts:
    """What differs between stages."""

    inputs: Wire
    mounts: list[Obj]
    resources: dict[str, dict[str, str]]
    volumes: list[tuple[Obj, Obj]] = field(default_factory=list)
    pod: PodSettings = PodSettings()  # noqa: RUF009 - frozen
    pull_secrets: list[LocalObjectReference] = field(default_factory=list)
    service_account: str = ""
    retries: int = CPU_STAGE_RETRIES
    deadline_seconds: int = 0  # of the train pod, by its own clock
    grace_seconds: int = GRACE_SECONDS
    port: int = 0
    job_labels: dict[str, str] = field(default_factory=dict)
    nodes: int = 1
    subdomain: str = ""  # the headless Service that gives each of several pods a name


def stage_job(metadata: Obj, stage: Stage, parts: JobParts, settings: Settings) -> Obj:
    """The Job. No TTL: a Job that vanished must not look like one that never ran."""
    labels = metadata["labels"] | {LABEL_STAGE: stage.value}
    pod_labels = dict(parts.pod.labels) | labels
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata | {"labels": labels | parts.job_labels},
        "spec": {
            "backoffLimit": parts.retries,
            # Only the queue starts it; without its webhook nobody else would hold it back.
            **({"suspend": True} if QUEUE_LABEL in parts.job_labels else {}),
            "completions": parts.nodes,
            "parallelism": parts.nodes,
            **(_indexed() if parts.nodes > 1 else {}),
            # A new pod only when the old one has ended: two trainers never share a checkpoint.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": failure_policy(stage),
            "template": {
                "metadata": {"labels": pod_labels, "annotations": dict(parts.pod.annotations)},
                "spec": _pod_spec(stage, parts, settings),
            },
        },
    }


def _indexed() -> Obj:
    """All pods at once (a queue counts them by parallelism), each with its number; the first one answers for all."""
    return {"completionMode": "Indexed", "successPolicy": {"rules": [{"succeededIndexes": "0"}]}}


def failure_policy(stage: Stage) -> Obj:
    """User errors fail the Job at once, disruptions do not count as a try, everything else (also OOM) does.

    Training that was told to end and saved did not fail either: a pod that somebody deleted, or that a node ended as
    it shut down, carries no such condition. (Pods of a suspended Job are never counted.) Nor did one that ended since
    another pod of its job did: of several pods, only the one that failed of itself counts.
    """
    saved = [_on_exit("Ignore", EXIT_PEER_LOST, EXIT_TERMINATED)] if stage is Stage.TRAIN else []
    disrupted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return {"rules": [_on_exit("FailJob", EXIT_USER_ERROR), disrupted, *saved]}


def _on_exit(action: str, *codes: int) -> Obj:
    return {"action": action, "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": list(codes)}}


def _pod_spec(stage: Stage, parts: JobParts, settings: Settings) -> Obj:
    tmp_volume, tmp_mount = scratch("tmp", "/tmp", SCRATCH)  # noqa: S108 - a mount, not a file
    account = {"serviceAccountName": parts.service_account} if parts.service_account else {}
    secrets = parts.pod.model_copy(update={"image_pull_secrets": parts.pull_secrets})
    return {
        **base_pod(settings.images, secrets),
        **placement(parts.pod),
        **account,
        **({"subdomain": parts.subdomain} if parts.subdomain else {}),
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": parts.grace_seconds,
        # The pod's own deadline: it starts when the pod does, so waiting for a node or a quota costs nothing.
        "activeDeadlineSeconds": _deadline(stage, parts.deadline_seconds),
        "containers": [_container(stage, parts, tmp_mount, settings)],
        "volumes": [store_volume(), tmp_volume, *(volume for volume, _ in parts.volumes)],
    }


def _container(stage: Stage, parts: JobParts, tmp_mount: Obj, settings: Settings) -> Obj:
    ports = [{"name": "progress", "containerPort": parts.port}] if parts.port else []
    return {
        "name": CONTAINER,
        "image": settings.images.trainer,
        "imagePullPolicy": settings.images.pull_policy,
        "args": [stage.value],
        "env": env(_environment(stage, parts)),
        "resources": parts.resources,
        "securityContext": container_security(),
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "File",
        "volumeMounts": [*parts.mounts, tmp_mount, *(mount for _, mount in parts.volumes)],
    } | ({"ports": ports} if ports else {})


def _environment(stage: Stage, parts: JobParts) -> dict[str, str]:
    values = {
        STAGE_INPUT_ENV: parts.inputs.model_dump_json(by_alias=True),
        "HOME": "/tmp",  # noqa: S108 - the pod's own emptyDir
        "HF_HUB_DISABLE_XET": "1",  # its native client follows redirects that we could not check
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    if stage not in (Stage.FETCH, Stage.PUBLISH):  # publish may export to a hub; it loads no model
        values["HF_HUB_OFFLINE"] = "1"
    count = threads(parts.resources["limits"])
    return values | ({"OMP_NUM_THREADS": str(count)} if count else {})


def _deadline(stage: Stage, own_seconds: int) -> int:
    return own_seconds + BACKSTOP_SECONDS if stage is Stage.TRAIN else DEADLINE_SECONDS[stage]
