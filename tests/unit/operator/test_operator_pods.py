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
        "(spec.pod.imagePullSecrets, the chart's images.pullSecrets).",
    ),
    "image, later kubelets": (
        waiting("ImagePullBackOff", 'Back-off pulling image "reg/x:1": ErrImagePull: reg/x:1: not found'),
        reasons.IMAGE_NOT_PULLED,
        "images.pullSecrets). reg/x:1: not found",
    ),
    "config": (
        waiting("CreateContainerConfigError", 'secret "x" not found'),
        reasons.CONTAINER_NOT_STARTED,
        'secret "x" not found. Correct what it names, in spec.pod or in the chart',
    ),
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


def test_a_node_that_cannot_make_the_pod_is_lifted_up() -> None:
    """No status says so: the pod is Pending, its container is being created."""
    event = {
        "reason": "FailedCreatePodSandBox",
        "message": 'Failed to create pod sandbox: rpc error: no runtime for "gvisor" is configured',
        "involvedObject": {"uid": "u"},
    }
    trouble = find_trouble([pod(**waiting("ContainerCreating"))], [event])
    assert trouble is not None
    assert trouble.reason == reasons.CONTAINER_NOT_STARTED
    assert trouble.message.startswith("node n1 cannot make the pod: Failed to create pod sandbox")
    assert 'no runtime for "gvisor" is configured. Check spec.pod.runtimeClassName' in trouble.message
    assert find_trouble([pod(containerStatuses=[{"state": {"running": {}}}])], [event]) is None, "it was tried again"
    pulling = {"reason": "Pulling", "message": 'Pulling image "reg/x:1"', "involvedObject": {"uid": "u"}}
    assert find_trouble([pod(**waiting("ContainerCreating"))], [event, pulling]) is None, "and is past that"


def test_a_pull_secret_that_is_absent_is_named() -> None:
    event = {
        "reason": "FailedToRetrieveImagePullSecret",
        "message": "Unable to retrieve some image pull secrets (mine); attempting to pull the image may not succeed.",
        "involvedObject": {"uid": "u"},
    }
    trouble = find_trouble([pod(**waiting("ErrImagePull", "unauthorized"))], [event])
    assert trouble is not None
    assert "images.pullSecrets): of these, this namespace has no Secret mine. unauthorized" in trouble.message
    assert find_trouble([pod(**waiting("ContainerCreating"))], [event]) is None, "the image may be public"


@pytest.mark.parametrize(
    ("component", "words"),
    [
        ("server", ": Insufficient cpu. Ask for less in spec.pod.resources or spec.resources, correct nodeSelector"),
        ("train", ": Insufficient cpu. Ask for less in spec.pod.resources or spec.resources, correct nodeSelector"),
        ("fetch", ": Insufficient cpu. Ask the administrator for a node with room"),
    ],
)
def test_what_to_do_where_no_node_fits(component: str, words: str) -> None:
    made = pod(**unscheduled("Insufficient cpu. "))
    made["metadata"]["labels"] = {"app.kubernetes.io/component": component}
    trouble = find_trouble([made], ())
    assert trouble is not None
    assert words in trouble.message


def test_what_to_do_is_never_cut_off() -> None:
    last = {"terminated": {"exitCode": 1, "message": "x" * 1024}}
    trouble = find_trouble([pod(**waiting("CrashLoopBackOff", restartCount=3, lastState=last))], ())
    assert trouble is not None
    assert trouble.message.endswith(
        "Correct spec.model, spec.engine or spec.pod; its whole log: kubectl logs p --previous"
    )
    assert len(trouble.message) < 950, "with what is said around it, it fits a condition"


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
    assert 'violates PodSecurity "restricted:latest". Correct what it names in spec.pod, or ask' in trouble.message
