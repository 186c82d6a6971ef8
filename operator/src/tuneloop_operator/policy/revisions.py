"""Which revisions of a ModelDeployment there should be: the one by the spec, the one before until that is ready.

Pure.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop_core.api.base import SpecModel
from tuneloop_core.api.modeldeployment import ModelDeployment
from tuneloop_core.api.modeldeployment_status import RevisionStatus
from tuneloop_core.api.rollout import RolloutStatus
from tuneloop_core.api.scaling import Scaling
from tuneloop_core.constants import GROUP, LABEL_REVISION
from tuneloop_operator.names import owner_uids
from tuneloop_operator.policy import autoscale
from tuneloop_operator.policy.digests import digest

Obj = dict[str, Any]

SOURCE_ANNOTATION = f"{GROUP}/model-source"
FINGERPRINT_ANNOTATION = f"{GROUP}/fingerprint"
BASE_ANNOTATION = f"{GROUP}/base"
"""On a revision's Deployment: the resolved URI of its base model. Without it nothing is concluded."""
MAX_RANK_ANNOTATION = f"{GROUP}/lora-max-rank"
"""On a revision's Deployment: ``engine.lora.maxRank`` as it was started with. Without it nothing is concluded."""


@dataclass(frozen=True)
class Chosen:
    """The revision that the spec wants: ``image`` is pinned from the moment the revision was made."""

    number: int
    image: str
    fingerprint: str
    new: bool


def source_of(deployment: ModelDeployment) -> str:
    """What the user asked for as the base model, to see a change of it."""
    model = deployment.spec.model
    if model.fine_tune_job:
        return f"finetunejob://{model.fine_tune_job}"
    return f"{model.uri}@{model.revision}" + (f"@{model.endpoint}" if model.endpoint else "")


def fingerprint(deployment: ModelDeployment, image: str, model_path: str) -> str:
    """Digest of everything that the server is started with; adapters, access and scaling are not part of it."""
    return _fingerprint(deployment, image, model_path, SpecModel.without_defaults)


def is_of(recorded: str, deployment: ModelDeployment, image: str, model_path: str) -> bool:
    """Whether a revision's fingerprint is of this spec; the first operators' had the defaults in it."""
    ways = (SpecModel.without_defaults, SpecModel.to_dict)
    return any(recorded == _fingerprint(deployment, image, model_path, way) for way in ways)


def _fingerprint(
    deployment: ModelDeployment, image: str, model_path: str, block: Callable[[SpecModel], dict[str, Any]]
) -> str:
    spec = deployment.spec
    parts = {"engine": block(spec.engine), "resources": block(spec.resources), "pod": block(spec.pod)}
    return digest({"image": image, "model": model_path} | parts)


def known(status: Sequence[RevisionStatus], found: Mapping[int, Obj]) -> list[RevisionStatus]:
    """Revisions by their Deployments, and the newest one of the status should its Deployment have vanished."""
    entries = {number: _entry(obj) for number, obj in found.items()}
    remembered = newest_of(status)
    if remembered is not None and number_of(remembered) > max(entries, default=0):
        gone = remembered.model_copy(update={"replicas": 0, "ready_replicas": 0, "ready": False})
        entries[number_of(remembered)] = gone
    return [entries[number] for number in sorted(entries, reverse=True)]


def _entry(obj: Obj) -> RevisionStatus:
    status, annotations = obj.get("status", {}), obj["metadata"].get("annotations") or {}
    replicas = int(obj["spec"].get("replicas", 1))
    return RevisionStatus(
        name=obj["metadata"]["labels"][LABEL_REVISION],
        image=obj["spec"]["template"]["spec"]["containers"][0]["image"],
        hash=annotations.get(FINGERPRINT_ANNOTATION, ""),
        created=obj["metadata"].get("creationTimestamp"),
        replicas=replicas,
        ready_replicas=int(status.get("readyReplicas", 0)),
        ready=replicas > 0 and is_ready(obj, replicas),
    )


def by_number(deployments: Sequence[Obj], owner_uid: str) -> dict[int, Obj]:
    """Our Deployments that are not on their way out, by revision number."""
    found: dict[int, Obj] = {}
    for obj in deployments:
        label = obj["metadata"]["labels"].get(LABEL_REVISION, "")
        if owner_uid in owner_uids(obj) and label[1:].isdigit() and not obj["metadata"].get("deletionTimestamp"):
            found[int(label[1:])] = obj
    return found


def annotation(obj: Obj, name: str) -> str:
    """An annotation's value, or empty."""
    return str((obj["metadata"].get("annotations") or {}).get(name, ""))


def choose(
    deployment: ModelDeployment, known: Sequence[RevisionStatus], found: Mapping[int, Obj], model_path: str, image: str
) -> Chosen:
    """The revision that the spec wants: one that is there, also an older one whose spec came back.

    Else the newest there was, where it was of this spec, else one more, with today's image. The strategy has no say:
    how a version takes over never makes one.
    """
    for entry in sorted(known, key=number_of, reverse=True):
        if number_of(entry) in found and is_of(entry.hash, deployment, entry.image, model_path):
            return again(deployment, entry, model_path)
    newest = newest_of(known)
    if newest is None:
        return Chosen(1, image, fingerprint(deployment, image, model_path), new=True)
    if is_of(newest.hash, deployment, newest.image, model_path):
        return again(deployment, newest, model_path)
    return Chosen(number_of(newest) + 1, image, fingerprint(deployment, image, model_path), new=True)


def meanwhile(
    rollout: RolloutStatus | None, known: Sequence[RevisionStatus], found: Mapping[int, Obj]
) -> Chosen | None:
    """What serves while the spec asks for a model that is not there yet: never a canary, which has proven nothing."""
    running = [entry for entry in known if number_of(entry) in found]
    unproven = rollout.canary if rollout and rollout.kind == "Revision" and rollout.phase != "Promoted" else ""
    entry = newest_of([each for each in running if each.name != unproven]) or newest_of(running)
    return Chosen(number_of(entry), entry.image, entry.hash, new=False) if entry else None


def again(deployment: ModelDeployment, entry: RevisionStatus, model_path: str) -> Chosen:
    """A revision that there is; its fingerprint is today's, also where an earlier operator wrote another."""
    return Chosen(number_of(entry), entry.image, fingerprint(deployment, entry.image, model_path), new=False)


def newest_of(revisions: Sequence[RevisionStatus]) -> RevisionStatus | None:
    """The revision with the highest number."""
    return max(revisions, key=number_of, default=None)


def number_of(revision: RevisionStatus) -> int:
    """7 of ``r7``."""
    return int(revision.name.removeprefix("r"))


def current_replicas(found: Mapping[int, Obj], scaling: Scaling) -> int:
    """What the newest Deployment was last scaled to; of a deployment that has none yet, what it starts with."""
    if found:
        return int(found[max(found)]["spec"].get("replicas", 1))
    return (scaling.replicas or 0) if scaling.mode == "External" else autoscale.start(scaling)


def never_answered(found: Obj) -> bool:
    """Whether a Deployment has not had all its pods answering yet, by the Deployment controller's own words."""
    status = found.get("status", {})
    if int(status.get("readyReplicas", 0)) or not int(found["spec"].get("replicas", 1)):
        return False
    progress = [item for item in status.get("conditions", []) if item["type"] == "Progressing"]
    return not any(item.get("reason") == "NewReplicaSetAvailable" for item in progress)


def is_ready(found: Obj | None, replicas: int) -> bool:
    """Whether a Deployment has all its pods answering, by a status that is about its latest spec."""
    if found is None:
        return False
    status = found.get("status", {})
    seen = int(status.get("observedGeneration", 0)) >= int(found["metadata"].get("generation", 0))
    return seen and int(status.get("readyReplicas", 0)) >= replicas


def obsolete(found: Mapping[int, Obj], chosen: Chosen, replicas: int) -> list[int]:
    """Other revisions that may go: all of them once the wanted one is ready, or where nothing runs when it comes.

    One that came and has not answered before all went to sleep is not ready by having no pod to wait for. Where the
    spec was set back, a newer one that does not answer goes at once: it only has the room that the wanted one needs.
    """
    others = sorted(number for number in found if number != chosen.number)
    asleep = replicas == 0 and chosen.number not in found
    if asleep or (replicas and is_ready(found.get(chosen.number), replicas)):
        return others
    return [number for number in others if chosen.number in found and number > chosen.number and _mute(found[number])]


def _mute(found: Obj) -> bool:
    """Whether none of its pods answers."""
    return not int(found.get("status", {}).get("readyReplicas", 0))


def sizes(chosen: Chosen, kept: Sequence[int], replicas: int) -> dict[int, int]:
    """Pods by revision: another is kept because the wanted one has not answered yet, and is scaled as if it were."""
    return dict.fromkeys(sorted({*kept, chosen.number}), replicas)
