"""Names of children, their owners, and keys of the queue, used by every layer. Never looks anything up."""

from typing import Any, NamedTuple

from tuneloop_core.constants import FINETUNEJOB_KIND, LABEL_FINETUNEJOB, LABEL_MODELDEPLOYMENT, MODELDEPLOYMENT_KIND
from tuneloop_core.stages import Stage

JOB_STAGES: tuple[Stage, ...] = (Stage.FETCH, Stage.CHECK, Stage.TRAIN, Stage.PUBLISH)
OWNER_LABELS = {FINETUNEJOB_KIND: LABEL_FINETUNEJOB, MODELDEPLOYMENT_KIND: LABEL_MODELDEPLOYMENT}


class Key(NamedTuple):
    """One custom resource."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


def owner_uids(obj: dict[str, Any]) -> set[str]:
    """UIDs of all owners of an object, as the API server gives it."""
    return {owner["uid"] for owner in obj["metadata"].get("ownerReferences", [])}


def stage_job(name: str, stage: Stage) -> str:
    """Job of a stage of FineTuneJob ``name``."""
    return f"{name}-{stage.value}"


def train_peers(name: str) -> str:
    """Headless Service and network policy of the train pods of FineTuneJob ``name``, where they are several."""
    return f"{name}-train"


def model_job(name: str) -> str:
    """Job that fetches the base model of ModelDeployment ``name``."""
    return f"{name}-model"


def adapter_job(name: str, tag: str) -> str:
    """Job that fetches an adapter of ModelDeployment ``name``; ``tag`` is of ten characters."""
    return f"{name}-a-{tag}"


def server(name: str) -> str:
    """Headless Service, PodDisruptionBudget and ConfigMap of ModelDeployment ``name``."""
    return f"{name}-server"


def revision(name: str, number: int) -> str:
    """Deployment of one revision of ModelDeployment ``name``."""
    return f"{name}-r{number}"
