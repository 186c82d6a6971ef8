"""What the watches have seen, by key and by owner: a copy that may be old, never the truth.

Objects are trimmed to what decisions read, so that thousands fit into little memory. Of two versions the newer wins,
which lets us put in what a write of ours returned before its watch event comes; and what was seen to go does not come
back by an answer that was on its way. Never asks the API server.
"""

from collections import defaultdict
from typing import Any

from tuneloop_core.constants import MODELDEPLOYMENT_KIND
from tuneloop_operator.names import OWNER_LABELS, Key
from tuneloop_operator.policy.owners import names_of

Obj = dict[str, Any]
Name = tuple[str, str]  # (kind, name), or (namespace, served name)

KEPT_METADATA = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "labels",
    "annotations",
    "ownerReferences",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)
GONE_KEPT = 4096
"""Of how many objects we remember that they went: answers that are on their way come within seconds."""
NOISY_ANNOTATION = "kubectl.kubernetes.io/last-applied-configuration"


class Cache:
    """Objects by (kind, namespace, name), children by their owner's key, ModelDeployments by the names they serve."""

    def __init__(self) -> None:
        self._objects: dict[Key, Obj] = {}
        self._claims: defaultdict[Name, set[Key]] = defaultdict(set)  # by (namespace, served name)
        self._children: dict[Key, dict[Name, Obj]] = defaultdict(dict)
        self._gone: dict[str, int] = {}  # by UID, the version at which it went

    def __len__(self) -> int:
        return len(self._objects)

    def put(self, obj: Obj) -> Obj:
        """Keep an object unless a newer version is known, or is known to be gone; returns the newest."""
        trimmed, key = trim(obj), key_of(obj)
        if version(obj) <= self._gone.get(obj["metadata"]["uid"], -1):
            return trimmed
        known = self._objects.get(key)
        if known is not None and version(known) > version(trimmed):
            return known
        self._unclaim(key, known)
        self._objects[key] = trimmed
        for claim in _claims(trimmed):
            self._claims[claim].add(key)
        owner = owner_key(trimmed)
        if owner is not None:
            self._children[owner][(key.kind, key.name)] = trimmed
        return trimmed

    def remove(self, obj: Obj) -> None:
        """Forget an object; a newer one of the same name stays."""
        key = key_of(obj)
        self._note_gone(obj)
        known = self._objects.get(key)
        if known is None or known["metadata"]["uid"] != obj["metadata"]["uid"]:
            return
        self._unclaim(key, known)
        del self._objects[key]
        owner = owner_key(known)
        if owner is not None and owner in self._children:
            self._children[owner].pop((key.kind, key.name), None)
            if not self._children[owner]:
                del self._children[owner]

    def _note_gone(self, obj: Obj) -> None:
        self._gone[obj["metadata"]["uid"]] = version(obj)
        if len(self._gone) > GONE_KEPT:
            del self._gone[next(iter(self._gone))]

    def get(self, kind: str, namespace: str, name: str) -> Obj | None:
        """One object, as last seen."""
        return self._objects.get(Key(kind, namespace, name))

    def claimants(self, namespace: str, name: str) -> frozenset[Key]:
        """ModelDeployments of a namespace that serve this name, or would."""
        return frozenset(self._claims.get((namespace, name), ()))

    def _unclaim(self, key: Key, known: Obj | None) -> None:
        for claim in _claims(known) if known is not None else ():
            self._claims[claim].discard(key)
            if not self._claims[claim]:
                del self._claims[claim]

    def children(self, owner: Key, kind: str) -> list[Obj]:
        """Children of one kind, by their labels, oldest first."""
        found = [obj for (child_kind, _), obj in self._children.get(owner, {}).items() if child_kind == kind]
        return sorted(found, key=lambda obj: (obj["metadata"].get("creationTimestamp", ""), obj["metadata"]["name"]))

    def all_children(self, owner: Key) -> list[Obj]:
        """Children of every kind."""
        return list(self._children.get(owner, {}).values())

    def keys(self, kind: str) -> list[Key]:
        """All keys of one kind."""
        return [key for key in self._objects if key.kind == kind]


def _claims(obj: Obj) -> list[Name]:
    if obj["kind"] != MODELDEPLOYMENT_KIND:
        return []
    return [(obj["metadata"].get("namespace", ""), name) for name in names_of(obj)]


def key_of(obj: Obj) -> Key:
    """Kind, namespace and name of an object."""
    metadata = obj["metadata"]
    return Key(obj["kind"], metadata.get("namespace", ""), metadata["name"])


def owner_key(obj: Obj) -> Key | None:
    """The custom resource that a child belongs to, by its labels."""
    labels = obj["metadata"].get("labels") or {}
    for kind, label in OWNER_LABELS.items():
        if label in labels:
            return Key(kind, obj["metadata"].get("namespace", ""), labels[label])
    return None


def version(obj: Obj) -> int:
    """The resourceVersion as a number: the API server's versions of one kind are comparable (KEP-5504)."""
    text = obj["metadata"].get("resourceVersion", "0")
    return int(text) if text.isdigit() else 0


def trim(obj: Obj) -> Obj:
    """Only what decisions read."""
    metadata = {field: obj["metadata"][field] for field in KEPT_METADATA if field in obj["metadata"]}
    if NOISY_ANNOTATION in metadata.get("annotations", {}):
        metadata["annotations"] = {k: v for k, v in metadata["annotations"].items() if k != NOISY_ANNOTATION}
    kept = {"apiVersion": obj.get("apiVersion", ""), "kind": obj["kind"], "metadata": metadata}
    return kept | {
        part: _TRIMMERS.get(obj["kind"], dict)(obj[part]) if part == "spec" else obj[part]
        for part in _PARTS
        if part in obj
    }


_PARTS = ("spec", "status", "data")


def _job_spec(spec: Obj) -> Obj:
    return {field: spec[field] for field in ("suspend", "backoffLimit", "parallelism") if field in spec}


def _pod_spec(spec: Obj) -> Obj:
    containers = [
        {"name": c["name"], "image": c.get("image", ""), "resources": c.get("resources", {})}
        for c in spec["containers"]
    ]
    return {"containers": containers, "nodeName": spec.get("nodeName", "")}


_TRIMMERS = {"Job": _job_spec, "Pod": _pod_spec}
