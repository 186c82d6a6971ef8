"""Why a pod does not work: a table of what the cluster says and what the user reads."""

from typing import Any

import pytest

from tuneloop_core.constants import LABEL_COMPONENT
from tuneloop_operator.policy import reasons
from tuneloop_operator.policy.pods import find_trouble, mount_words, quota_words, refused

Obj = dict[str, Any]


def pod(**status: Any) -> Obj:
    resources = {"requests": {"cpu": "1", "nvidia.com/gpu": "1"}, "limits": {"memory": "4Gi"}}
    return {
        "metadata": {"name": "p", "uid": "u", "labels": {LABEL_COMPONENT: "train"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "main", "image": "i", "resources": resources}]},
        "status": {"phase": "Pending"} | status,
    }


def waiting(reason: str, message: str = "", **more: Any) -> Obj:
    return {
        "containerStatuses": [{"image": "reg/x:1", "state": {"waiting": {"reason": reason, "message": message}}} | more]
    }


def unscheduled(message: str, reason: str = "Unschedulable") -> Obj:
    return {"conditions": [{"type": "PodScheduled", "status": "False", "reason": reason, "message": message}]}


CASES = {
    "no GPU": (
        unscheduled("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
        reasons.UNSCHEDULABLE,
        "no node fits the pod (asks for cpu 1, nvidia.com/gpu 1): 0/3 nodes are available: 3 Insufficient nvidia",
    ),
    "claim missing": (
        unscheduled('persistentvolumeclaim "data" not found'),
        reasons.CLAIM_PENDING,
        'persistentvolumeclaim "data" not found. Make the claim, or correct its name in the spec',
    ),
    "claim unbound": (
        unscheduled("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."),
        reasons.CLAIM_PENDING,
        "look at it with kubectl get pvc",
    ),
    "gated": (unscheduled("gated by x", "SchedulingGated"), reasons.QUEUE_WAITING, "held back by a scheduling gate"),
    "image": (waiting("ErrImagePull", "not found"), reasons.IMAGE_NOT_PULLED, "image reg/x:1 cannot be pulled."),
    "image, later": (
        waiting("ImagePullBackOff", "Back-off pulling image"),
        reasons.IMAGE_NOT_PULLED,
        "(spec.pod.imagePullSecrets).",
    ),
    "config": (waiting("CreateContainerConfigError", "no such key"), reasons.CONTAINER_NOT_STARTED, "no such key"),
    "crash": (
        waiting(
            "CrashLoopBackOff", restartCount=4, lastState={"terminated": {"exitCode": 1, "message": "engine died"}}
        ),
        reasons.CRASHING,
        "(restart 4): engine died",
    ),
    "crash, started anew": (
        {
            "containerStatuses": [
                {
                    "state": {"running": {}},
                    "ready": False,
                    "restartCount": 2,
                    "lastState": {"terminated": {"exitCode": 1, "message": "engine died"}},
                }
            ]
        },
        reasons.CRASHING,
        "(restart 2): engine died",
    ),
    "crash of memory": (
        waiting("CrashLoopBackOff", lastState={"terminated": {"reason": "OOMKilled", "exitCode": 137}}),
        reasons.OOM_KILLED,
        "(limit 4Gi). Lower training.maxSequenceLength",
    ),
    "node lost": (
        {"conditions": [{"type": "Ready", "status": "Unknown", "reason": "NodeLost"}]},
        reasons.NODE_LOST,
        "node n1 does not answer",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_trouble(name: str) -> None:
    status, reason, words = CASES[name]
    trouble = find_trouble([pod(**status)], ())
    assert trouble is not None
    assert trouble.reason == reason
    assert words in trouble.message


def test_a_running_or_ended_pod_has_no_trouble() -> None:
    assert find_trouble([pod(phase="Running", containerStatuses=[{"state": {"running": {}}}])], ()) is None
    assert find_trouble([pod(phase="Failed", **waiting("ErrImagePull"))], ()) is None


def test_a_conflict_that_the_scheduler_tries_again_is_no_trouble() -> None:
    message = (
        'running PreBind plugin "VolumeBinding": Operation cannot be fulfilled on persistentvolumeclaims '
        '"tuneloop-store": the object has been modified; please apply your changes to the latest version and try again'
    )
    assert find_trouble([pod(**unscheduled(message, "SchedulerError"))], ()) is None


def test_a_mount_event_of_this_pod_is_lifted_up() -> None:
    event = {
        "reason": "FailedMount",
        "message": 'MountVolume.SetUp failed for volume "secret-model" : secret "hf-token" not found',
        "involvedObject": {"uid": "u"},
    }
    trouble = find_trouble([pod()], [event])
    assert trouble is not None
    assert trouble.reason == reasons.VOLUME_NOT_MOUNTED
    assert trouble.message.startswith('Secret "hf-token" does not exist')
    assert find_trouble([pod()], [event | {"involvedObject": {"uid": "other"}}]) is None


def test_a_missing_key_says_which_would_be_right() -> None:
    words = mount_words("references non-existent secret key: token")
    assert (
        words
        == 'a Secret of the spec lacks the key "token"; hf://, oci:// and https:// need "token", s3:// needs '
        + ('"accessKeyId" and "secretAccessKey"')
    )


def test_quota_in_numbers() -> None:
    message = (
        'pods "x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, '
        "used: requests.nvidia.com/gpu=4, limited: requests.nvidia.com/gpu=4"
    )
    trouble = refused([{"reason": "FailedCreate", "message": message}], "Job one-train")
    assert trouble is not None
    assert trouble.reason == reasons.QUOTA_EXCEEDED
    assert (
        "quota gpus is used up: asked for requests.nvidia.com/gpu=1, used requests.nvidia.com/gpu=4 of "
        in trouble.message
    )
    assert quota_words("is forbidden: odd words") == "odd words"


def test_another_refusal() -> None:
    event = {"reason": "FailedCreate", "message": 'pods "x" is forbidden: violates PodSecurity "restricted:latest"'}
    trouble = refused([{"reason": "SuccessfulCreate", "message": ""}, event], "Job one-train")
    assert trouble is not None
    assert trouble.reason == reasons.POD_REFUSED
    assert 'violates PodSecurity "restricted:latest"' in trouble.message
