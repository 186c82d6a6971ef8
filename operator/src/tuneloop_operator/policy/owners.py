"""Which names of a ModelDeployment belong to another one: a name is served once in a namespace, by the older of two.

The order is the gateway's own, by creation and then by name, so that what is told here is what clients meet. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tuneloop_core.api.modeldeployment import ModelDeployment
from tuneloop_core.api.modeldeployment_status import AdapterStatus
from tuneloop_operator.policy import reasons
from tuneloop_operator.policy.adapters import Resolved
from tuneloop_operator.policy.bases import as_before

Obj = dict[str, Any]


def names_of(obj: Obj) -> tuple[str, ...]:
    """What clients may send as ``model``: the base's name, then the adapters' of the spec."""
    return (obj["metadata"]["name"], *(adapter["name"] for adapter in obj.get("spec", {}).get("adapters") or ()))


def taken(mine: Obj, others: Iterable[Obj]) -> dict[str, str]:
    """The names of this one that belong to an older one of its namespace, each with that one's name."""
    owners: dict[str, str] = {}
    for each in sorted((mine, *others), key=_age):
        for name in names_of(each):
            owners.setdefault(name, each["metadata"]["name"])
    return {name: owners[name] for name in names_of(mine) if owners[name] != mine["metadata"]["name"]}


def _age(obj: Obj) -> tuple[str, str]:
    return obj["metadata"].get("creationTimestamp", ""), obj["metadata"]["name"]


def base_words(deployment: ModelDeployment, owners: Mapping[str, str]) -> str:
    """Why nobody gets the base model by its name, and what to do; empty where they do."""
    name = deployment.metadata.name
    if name not in owners:
        return ""
    return (
        f"the name '{name}' belongs to ModelDeployment '{owners[name]}', which has an adapter of that name; rename the "
        "adapter there, or make this deployment anew under another name"
    )


def without(resolved: Sequence[Resolved], owners: Mapping[str, str], deployment: ModelDeployment) -> Sequence[Resolved]:
    """The adapters, with those kept away from the servers whose names belong to another; their versions stay known."""
    if not owners:
        return resolved
    before = {status.name: status for status in deployment.status.adapters if status.digest}
    return [_refused(item, owners[item.name], before) if item.name in owners else item for item in resolved]


def _refused(item: Resolved, owner: str, before: Mapping[str, AdapterStatus]) -> Resolved:
    """No new version either: there is nothing to roll out where nobody asks."""
    known = as_before(item, before[item.name]) if item.name in before else item
    words = f"adapter '{item.name}' belongs to ModelDeployment '{owner}'; rename it here, or remove it there"
    return replace(known, refused=True, stalled=True, reason=reasons.NAME_TAKEN, message=words)
