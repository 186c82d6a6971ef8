"""How one revision succeeds another under strategy Canary: which of two serves, and how many pods each has.

Pure. Which revision is wanted, whatever the strategy, is ``policy.revisions``'.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from tuneloop_core.api.modeldeployment import ModelDeployment
from tuneloop_core.api.rollout import RolloutStatus
from tuneloop_core.constants import LABEL_REVISION
from tuneloop_operator.policy import reasons
from tuneloop_operator.policy.pods import condition, find_trouble, quota_words
from tuneloop_operator.policy.revisions import FINGERPRINT_ANNOTATION, Chosen, is_ready
from tuneloop_operator.policy.rollout import ENDED, Version, withdrawn
from tuneloop_operator.policy.versions import Pair

Obj = dict[str, Any]

NO_ROOM: Final = (reasons.UNSCHEDULABLE, reasons.QUOTA_EXCEEDED)
OFFER: Final = (
    "there is no room for a second revision beside the one that serves: free some, or set spec.rollout.strategy to "
    "Recreate, which stops the old pods first (requests wait meanwhile)"
)


def pair_of(deployment: ModelDeployment, found: Mapping[int, Obj], chosen: Chosen) -> Pair | None:
    """The revision that serves and the one that is wanted in its place; None where nothing else serves."""
    number = _stable(deployment, found, chosen)
    if number is None:
        return None
    name, annotations = deployment.metadata.name, found[number]["metadata"].get("annotations") or {}
    stable = Version("Revision", name, f"r{number}", annotations.get(FINGERPRINT_ANNOTATION, ""))
    return Pair(stable, Version("Revision", name, f"r{chosen.number}", chosen.fingerprint))


def _stable(deployment: ModelDeployment, found: Mapping[int, Obj], chosen: Chosen) -> int | None:
    status, refused = deployment.status.rollout, {no.key for no in deployment.status.rejected}
    others = [number for number in found if number != chosen.number]
    if status is not None and status.kind == "Revision":
        ended = status.canary if status.phase == "Promoted" else status.stable
        if ended == f"r{chosen.number}":
            return None
        if status.phase != "Promoted" and (named := [number for number in others if f"r{number}" == ended]):
            return named[0]  # also where a third is wanted now: the canary between them has proven nothing
    serving = [number for number in others if chosen.fingerprint in refused or _serves(found[number])]
    return max(serving, default=None)


def _serves(found: Obj) -> bool:
    """Whether a revision answers, or would if any replica were wanted."""
    return int(found["spec"].get("replicas", 1)) == 0 or is_ready(found, 1)


def withdrawal(
    known: RolloutStatus | None, chosen: Chosen | None, there: Sequence[str], why: str, now: datetime
) -> RolloutStatus | None:
    """The rollout of a revision that is no longer wanted, as long as it takes anything; None where there is none.

    ``there``: the revisions that have a Deployment, or pods that were not asked to go. Until the canary is none of
    them no adapter's rollout begins, since the status has room for one and the gateways go by it.
    """
    if known is None or chosen is None or known.kind != "Revision" or known.stable != f"r{chosen.number}":
        return None
    if known.phase not in ENDED:
        return withdrawn(known, why, now)
    return known if known.phase == "RolledBack" and known.canary in there else None


def sizes(status: RolloutStatus, replicas: int) -> dict[int, int]:
    """Pods by revision: the one that serves keeps all, so that a rollback is at once; the canary gets its share."""
    stable, canary = int(status.stable[1:]), int(status.canary[1:])
    if status.phase == "RolledBack":
        return {stable: replicas}
    if status.phase == "Promoted":
        return {canary: replicas}
    return {stable: replicas, canary: canary_size(status, replicas)}


def serving_only(status: RolloutStatus | None, found: Mapping[int, Obj]) -> Mapping[int, Obj]:
    """Without the canary's Deployment: what replicas there are is what the revision that serves has."""
    if status is None or status.kind != "Revision" or status.phase == "Promoted":
        return found
    number = int(status.stable[1:])
    return {number: found[number]} if number in found else found


def canary_size(status: RolloutStatus, replicas: int) -> int:
    """The canary's share of the pods, at least one; all of them before it takes all of the traffic."""
    share = math.ceil(replicas * status.weight / 100)
    return replicas if status.phase == "Promoting" else min(replicas, max(1, share))


def trouble(deployment: Obj | None, pods: Sequence[Obj], label: str) -> tuple[str, str]:
    """(reason, words) of what keeps a revision's pods from being ready; empty where it is only time."""
    refused = condition(deployment, "ReplicaFailure") if deployment else None
    if refused is not None and refused.get("status") == "True" and "exceeded quota" in refused.get("message", ""):
        return reasons.QUOTA_EXCEEDED, f"{quota_words(refused['message'])}; {OFFER}"
    found = find_trouble([pod for pod in pods if pod["metadata"]["labels"].get(LABEL_REVISION) == label], ())
    if found is None:
        return "", ""
    return found.reason, f"{found.message}; {OFFER}" if found.reason in NO_ROOM else found.message
