"""Why a pod does not do its work, in the words of the one who must mend it: an ordered chain of checks.

Each check looks for one thing and returns a Trouble or None; the first that speaks wins, most specific first. What
hides in children (scheduler, kubelet, quota) is lifted up here. Pure.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop_core.constants import LABEL_COMPONENT
from tuneloop_core.stages import Stage
from tuneloop_operator.policy import reasons
from tuneloop_operator.policy.conditions import cut

Obj = dict[str, Any]

PULL_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
)
START_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError"})
NOT_RETRIEVED = "FailedToRetrieveImagePullSecret"
NO_SANDBOX = "FailedCreatePodSandBox"
PAST_SANDBOX = frozenset({"Pulling", "Pulled", "Created", "Started"})
LAST_WORDS = 700  # characters of what a container said as it ended: what to do next must fit as well
MOUNT_EVENTS = frozenset({"FailedMount", "FailedAttachVolume", "FailedMapVolume"})
# The scheduler met another writer as it bound a claim: it tries again within seconds.
_CONFLICT = "the object has been modified"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"  # the Job controller sets it


@dataclass(frozen=True)
class Trouble:
    """What is wrong, as a condition's reason and message."""

    reason: str
    message: str


Check = Callable[[Obj, Sequence[Obj]], Trouble | None]


def find_trouble(pods: Iterable[Obj], events: Sequence[Obj]) -> Trouble | None:
    """The first trouble of any pod that has not ended; ``events`` are those of the pods."""
    for pod in pods:
        if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            continue
        for check in CHECKS:
            trouble = check(pod, events)
            if trouble is not None:
                return trouble
    return None


def refused(events: Iterable[Obj], owner: str) -> Trouble | None:
    """Why the Job or Deployment ``owner`` got no pod at all: a quota or another admission refused it."""
    for event in events:
        message = event.get("message", "")
        if event.get("reason") not in ("FailedCreate", "ReplicaFailure"):
            continue
        if "exceeded quota" in message:
            return Trouble(reasons.QUOTA_EXCEEDED, f"no pod for {owner}: {quota_words(message)}")
        return Trouble(reasons.POD_REFUSED, f"the cluster refused the pod of {owner}: {refusal_words(message)}")
    return None


def quota_words(message: str) -> str:
    """Say what a quota lacks in numbers: asked, used and allowed of each resource."""
    found = re.search(r"exceeded quota: ([^,]+), requested: (.*?), used: (.*?), limited: (.*)$", message)
    if found is None:
        return _after_colon(message)
    quota, requested, used, limited = found.groups()
    return (
        f"quota {quota} is used up: asked for {requested}, used {used} of {limited}. "
        "Ask for less in spec.pod.resources or spec.resources, wait until others end, or raise the quota"
    )


def _after_colon(message: str) -> str:
    return message.split("is forbidden: ", 1)[-1]


def _node_lost(pod: Obj, _events: Sequence[Obj]) -> Trouble | None:
    ready = condition(pod, "Ready")
    tainted = (condition(pod, "DisruptionTarget") or {}).get("reason") == "DeletionByTaintManager"
    if tainted or (ready and ready.get("reason") == "NodeLost") or pod.get("status", {}).get("reason") == "NodeLost":
        return Trouble(
            reasons.NODE_LOST, f"node {node_of(pod)} does not answer; the pod is replaced when it is given up"
        )
    return None


def _unschedulable(pod: Obj, _events: Sequence[Obj]) -> Trouble | None:
    scheduled = condition(pod, "PodScheduled")
    if not scheduled or scheduled.get("status") != "False":
        return None
    message = scheduled.get("message", "").removesuffix(" ")
    if _CONFLICT in message:
        return None
    if "persistentvolumeclaim" in message.lower() and "not found" in message:
        return Trouble(reasons.CLAIM_PENDING, f"{message}. Make the claim, or correct its name in the spec")
    if "unbound immediate PersistentVolumeClaims" in message:
        return Trouble(
            reasons.CLAIM_PENDING, f"{message} A claim of the pod is not bound: look at it with kubectl get pvc"
        )
    if scheduled.get("reason") == "SchedulingGated":
        return Trouble(reasons.QUEUE_WAITING, f"the pod is held back by a scheduling gate. {message}")
    words = f"no node fits the pod ({asked_words(pod)}): {message.rstrip('. ')}. {_remedy(pod, PLACE_REMEDIES)}"
    return Trouble(reasons.UNSCHEDULABLE, words)


def _image(pod: Obj, events: Sequence[Obj]) -> Trouble | None:
    for status in containers(pod):
        waiting = status.get("state", {}).get("waiting", {})
        if waiting.get("reason") in PULL_REASONS:
            kind = pod["metadata"].get("labels", {}).get(LABEL_COMPONENT, "")
            value = "images.server" if kind == SERVER else "images.trainer"
            return Trouble(
                reasons.IMAGE_NOT_PULLED,
                f"image {status.get('image', '')} cannot be pulled. Check its name (the chart's {value}), the registry "
                f"and the pull secrets (spec.pod.imagePullSecrets, the chart's images.pullSecrets)"
                f"{_absent_secrets(pod, events)}. {pull_words(waiting.get('message', ''))}".strip(),
            )
    return None


def _absent_secrets(pod: Obj, events: Iterable[Obj]) -> str:
    """The pull secrets that the kubelet did not find."""
    told = [event.get("message", "") for event in _of(pod, events) if event.get("reason") == NOT_RETRIEVED]
    found = next((match[1] for words in told if (match := re.search(r"\(([^)]+)\)", words))), "")
    return f": of these, this namespace has no Secret {found}" if found else ""


def _of(pod: Obj, events: Iterable[Obj]) -> list[Obj]:
    """The Events of one pod."""
    return [event for event in events if event.get("involvedObject", {}).get("uid") == pod["metadata"]["uid"]]


def _container_start(pod: Obj, _events: Sequence[Obj]) -> Trouble | None:
    for status in containers(pod):
        waiting = status.get("state", {}).get("waiting", {})
        if waiting.get("reason") in START_REASONS:
            words = f"{waiting['reason']}: {waiting.get('message', '')}".rstrip(". ")
            return Trouble(
                reasons.CONTAINER_NOT_STARTED, f"{words}. Correct what it names, in spec.pod or in the chart"
            )
    return None


def _sandbox(pod: Obj, events: Sequence[Obj]) -> Trouble | None:
    """The node makes no pod at all, and says so in an Event alone."""
    for event in _of(pod, events) if not _begun(pod, events) else ():
        if event.get("reason") == NO_SANDBOX:
            words = event.get("message", "").rstrip(". ")
            return Trouble(
                reasons.CONTAINER_NOT_STARTED,
                f"node {node_of(pod)} cannot make the pod: {words}. Check spec.pod.runtimeClassName; else the node, or "
                "its network, needs its administrator",
            )
    return None


def _crashing(pod: Obj, _events: Sequence[Obj]) -> Trouble | None:
    for status in containers(pod):
        ended = status.get("lastState", {}).get("terminated", {})
        waiting = status.get("state", {}).get("waiting", {})
        if waiting.get("reason") != "CrashLoopBackOff" and not _tries_again(status, ended):
            continue
        if ended.get("reason") == "OOMKilled":
            return Trouble(reasons.OOM_KILLED, oom_words(pod))
        words = cut((ended.get("message") or f"exit code {ended.get('exitCode', '?')}").strip().rstrip("."), LAST_WORDS)
        return Trouble(
            reasons.CRASHING,
            f"the container ends again and again (restart {status.get('restartCount')}): {words}. Correct spec.model, "
            f"spec.engine or spec.pod; its whole log: kubectl logs {pod['metadata']['name']} --previous",
        )
    return None


def _tries_again(status: Obj, ended: Obj) -> bool:
    """Whether it runs just now, but only because it is started anew each time: what ended it last is still true."""
    return status.get("restartCount", 0) >= 2 and not status.get("ready") and ended.get("exitCode", 0) != 0


def _volume(pod: Obj, events: Sequence[Obj]) -> Trouble | None:
    for event in _of(pod, events) if not _begun(pod, events) else ():
        if event.get("reason") in MOUNT_EVENTS:
            return Trouble(reasons.VOLUME_NOT_MOUNTED, mount_words(event.get("message", "")))
    return None


SERVER = "server"
PLACED = (
    "Ask for less in spec.pod.resources or spec.resources, correct nodeSelector, tolerations and affinity of spec.pod, "
)
PLACE_REMEDIES = dict.fromkeys((SERVER, Stage.TRAIN.value), f"{PLACED}or add a node")
OOM_REMEDIES = {
    SERVER: "Lower engine.maxModelLength or the model's size, or raise pod.resources.limits.memory",
    Stage.TRAIN.value: "Lower training.maxSequenceLength, or take another method.adapter (QLoRA holds less than LoRA, "
    "LoRA less than DoRA and None), or raise pod.resources.limits.memory",
}
OOM_OF_CPU_STAGES = "Ask the administrator to raise stages.memoryLimit of the chart: pod.resources is of the train pod"
"""By the component that a pod is of."""

PLACE_OF_CPU_STAGES = "Ask the administrator for a node with room: what it asks for is the chart's (stages)"

CHECKS: tuple[Check, ...] = (_node_lost, _unschedulable, _image, _container_start, _crashing, _volume, _sandbox)


def _remedy(pod: Obj, remedies: Mapping[str, str]) -> str:
    kind = pod["metadata"].get("labels", {}).get(LABEL_COMPONENT, "")
    return remedies.get(kind, PLACE_OF_CPU_STAGES)


def _begun(pod: Obj, events: Iterable[Obj]) -> bool:
    """Whether the kubelet is past volumes and sandbox: what it met there before was over at another try."""
    running = any("running" in status.get("state", {}) for status in containers(pod))
    return running or any(event.get("reason") in PAST_SANDBOX for event in _of(pod, events))


def refusal_words(message: str) -> str:
    """What the cluster's admission said against a pod, and where to look."""
    return (
        f"{_after_colon(message).rstrip('. ')}. Correct what it names in spec.pod, or ask the cluster's administrator"
    )


def mount_words(message: str) -> str:
    """The part of a mount event that a person can act on."""
    secret = re.search(r'secret "([^"]+)" not found', message)
    if secret:
        return f'Secret "{secret[1]}" does not exist in this namespace; make it, or correct credentialsSecret'
    missing_key = re.search(r"references non-existent secret key: (\S+)", message)
    if missing_key:
        return (
            f'a Secret of the spec lacks the key "{missing_key[1]}"; hf://, oci:// and https:// need "token", '
            's3:// needs "accessKeyId" and "secretAccessKey"'
        )
    return f"a volume of the pod cannot be mounted: {message}"


def pull_words(message: str) -> str:
    """The registry's answer without the kubelet's changing back-off words; later kubelets say both at once."""
    return (
        message.rpartition("ErrImagePull: ")[2]
        if "ErrImagePull: " in message or not message.startswith("Back-off")
        else ""
    )


def oom_words(pod: Obj) -> str:
    """What to lower, or raise, after the kernel killed a container for memory."""
    limit = first_container(pod).get("resources", {}).get("limits", {}).get("memory", "none")
    kind = pod["metadata"].get("labels", {}).get(LABEL_COMPONENT, "")
    return f"the container was killed for memory (limit {limit}). {OOM_REMEDIES.get(kind, OOM_OF_CPU_STAGES)}"


def asked_words(pod: Obj) -> str:
    """Requests of the first container: ``cpu 1, memory 4Gi, nvidia.com/gpu 1``."""
    requests = first_container(pod).get("resources", {}).get("requests", {})
    return "asks for " + ", ".join(f"{name} {amount}" for name, amount in sorted(requests.items()))


def condition(obj: Obj, kind: str) -> Obj | None:
    """A condition of a built-in object by type."""
    found = [item for item in obj.get("status", {}).get("conditions", []) if item.get("type") == kind]
    return found[0] if found else None


def index_of(pod: Obj) -> str:
    """Its number among the pods of an indexed Job; empty where the Job has one pod."""
    return str((pod["metadata"].get("labels") or {}).get(INDEX_LABEL, ""))


def leads(pod: Obj) -> bool:
    """Whether it is the pod that answers for its Job: the only one, or the first of several."""
    return index_of(pod) in ("", "0")


def containers(pod: Obj) -> list[Obj]:
    """Statuses of the pod's containers."""
    return list(pod.get("status", {}).get("containerStatuses", []))


def first_container(pod: Obj) -> Obj:
    """The main container as asked for; empty where the cache keeps no spec."""
    found = pod.get("spec", {}).get("containers", [])
    return dict(found[0]) if found else {}


def node_of(pod: Obj) -> str:
    """Name of the pod's node."""
    return str(pod.get("spec", {}).get("nodeName", "?"))
