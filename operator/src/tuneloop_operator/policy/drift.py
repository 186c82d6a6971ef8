"""Whether a child is still as it was applied, by the fields that the API server says are ours. Pure.

Nothing is compared with what is there: the API server fills in defaults, and which is its own matter. But with
server-side apply it also keeps, in ``metadata.managedFields``, who set each field last; whoever edits one of ours takes
it from us. So a child is as we applied it while every field of its manifest is ours.
"""

import json
from typing import Any, Final

from tuneloop_core.constants import FIELD_MANAGER, GROUP

Obj = dict[str, Any]

APPLIED_ANNOTATION: Final = f"{GROUP}/applied"
_IDENTITY: Final = ("apiVersion", "kind", "metadata", "status")
_OWN_METADATA: Final = ("labels", "annotations", "ownerReferences")


def is_applied(manifest: Obj, found: Obj | None) -> bool:
    """Whether ``found`` was made from this very manifest, by the digest in both."""
    if found is None:
        return False
    annotations = found["metadata"].get("annotations") or {}
    return bool(annotations.get(APPLIED_ANNOTATION) == manifest["metadata"]["annotations"][APPLIED_ANNOTATION])


def is_as_applied(manifest: Obj, found: Obj | None) -> bool:
    """Whether it was, and nobody has changed a field of it since; ``found`` as the API server answers, whole."""
    if found is None or not is_applied(manifest, found):
        return False
    wanted = {key: value for key, value in manifest.items() if key not in _IDENTITY}
    wanted["metadata"] = {key: manifest["metadata"][key] for key in _OWN_METADATA if key in manifest["metadata"]}
    ours = _our_fields(found)
    return bool(ours) and _is_ours(wanted, ours)


def _our_fields(found: Obj) -> Obj:
    """What we own, as ``fieldsV1``: ``f:NAME`` of a field, ``k:{...}`` of a list's item; nothing below is all of it."""
    entries = found["metadata"].get("managedFields") or ()
    ours = [item for item in entries if item.get("manager") == FIELD_MANAGER and item.get("operation") == "Apply"]
    return dict(ours[0].get("fieldsV1") or {}) if ours else {}


def _is_ours(value: Any, owned: Obj) -> bool:
    if not owned or not isinstance(value, dict | list):
        return True
    if isinstance(value, dict):
        return all(f"f:{key}" in owned and _is_ours(each, owned[f"f:{key}"]) for key, each in value.items())
    keyed = [(json.loads(key[2:]), below) for key, below in owned.items() if key.startswith("k:")]
    return all(any(item.items() >= key.items() and _is_ours(item, below) for key, below in keyed) for item in value)
