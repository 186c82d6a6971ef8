"""The one status write of a reconcile: a merge patch of what changed, on the version that was read.

Never writes the same twice.
"""

from typing import Any

from tuneloop_operator.kube.client import Client
from tuneloop_operator.kube.resources import Obj, resource_of


def merge_diff(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The JSON merge patch (RFC 7386) from ``old`` to ``new``: lists whole, absent keys as null."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        known = old.get(key)
        if isinstance(value, dict) and isinstance(known, dict):
            inner = merge_diff(known, value)
            if inner:
                patch[key] = inner
        elif value != known or key not in old:
            patch[key] = value
    return patch


async def write_status(client: Client, obj: Obj, new: dict[str, Any]) -> Obj | None:
    """Write the difference, or nothing when there is none (None).

    A ConflictError means that ``obj`` is old: look again at what is there now.
    """
    patch = merge_diff(obj.get("status") or {}, new)
    if not patch:
        return None
    metadata = obj["metadata"]
    body = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": patch}
    return await client.patch(resource_of(obj), metadata["namespace"], metadata["name"], body, "status")
