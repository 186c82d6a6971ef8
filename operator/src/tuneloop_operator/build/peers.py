"""What the pods of one train stage need to find and reach each other, and nobody else. Pure.

A headless Service gives each a stable name; a network policy lets them talk. A stage of one pod needs neither.
"""

from typing import Any

from tuneloop_core.api.finetunejob import FineTuneJob
from tuneloop_core.constants import (
    FINETUNEJOB_KIND,
    LABEL_COMPONENT,
    LABEL_FINETUNEJOB,
    LABEL_MANAGED_BY,
    MANAGED_BY,
    MEETING_PORT,
)
from tuneloop_core.settings import Settings
from tuneloop_core.stages import Stage
from tuneloop_operator import names
from tuneloop_operator.build.meta import child_metadata
from tuneloop_operator.build.policies import names_rule

Obj = dict[str, Any]


def build_peers(job: FineTuneJob, settings: Settings) -> list[Obj]:
    """Service and policy of the train pods; none where there is one pod, no policy where the chart has none."""
    if job.spec.resources.nodes == 1:
        return []
    policies = [_policy(job)] if settings.network_policies else []
    return [_service(job), *policies]


def rendezvous(job: FineTuneJob, k8s_job: str) -> str:
    """HOST:PORT of the first pod of the train Job; the Job controller gives its pods such host names."""
    return f"{k8s_job}-0.{names.train_peers(job.metadata.name)}:{MEETING_PORT}"


def _service(job: FineTuneJob) -> Obj:
    """Names for pods that are not ready, too: nothing of a train pod ever asks whether it is."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(job),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": _selector(job),
            "ports": [{"name": "meeting", "port": MEETING_PORT, "targetPort": MEETING_PORT, "protocol": "TCP"}],
        },
    }


def _policy(job: FineTuneJob) -> Obj:
    """Beside the namespace's policy, which lets the operator ask for progress: peers on every port, and names.

    gloo and NCCL choose their ports themselves.
    """
    peers = [{"podSelector": {"matchLabels": _selector(job)}}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(job),
        "spec": {
            "podSelector": {"matchLabels": _selector(job)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": peers}],
            "egress": [{"to": peers}, names_rule()],
        },
    }


def _metadata(job: FineTuneJob) -> Obj:
    return child_metadata(FINETUNEJOB_KIND, job.metadata, names.train_peers(job.metadata.name), Stage.TRAIN.value)


def _selector(job: FineTuneJob) -> dict[str, str]:
    return {
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_COMPONENT: Stage.TRAIN.value,
        LABEL_FINETUNEJOB: job.metadata.name,
    }
