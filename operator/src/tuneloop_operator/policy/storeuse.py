"""What of a namespace's store is in use, so that a fetch that needs room knows what it may remove. Pure.

Errs on the side of keeping: whatever a resource that exists may read again is in use.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from tuneloop_core.constants import STORE_DATASETS, STORE_MODELS
from tuneloop_core.stages import OWNER_CHARACTERS, StoreUse
from tuneloop_operator.policy import conditions

Obj = dict[str, Any]

MAX_LISTED = 500
"""Entries that a fetch Job carries at most; where there are more, nothing is removed."""
CACHED = (f"{STORE_MODELS}/", f"{STORE_DATASETS}/")


def store_use(
    jobs: Iterable[Obj], deployments: Iterable[Obj], servers: Iterable[Obj], now: datetime
) -> StoreUse | None:
    """In use are models and datasets of jobs that have not succeeded, of ModelDeployments and of their servers.

    All of one namespace, as the API server gives them; ``servers`` are the children of kind Deployment.
    """
    needed, deployed = [job for job in jobs if not _succeeded(job)], list(deployments)
    paths = {path for job in needed for path in (_path(job, "model"), _path(job, "dataset"))}
    paths |= {_path(deployment, "model") for deployment in deployed}
    paths |= {path for server in servers for path in _mounted(server)}
    cached = sorted(path for path in paths if path.startswith(CACHED))
    owners = sorted(str(obj["metadata"]["uid"])[:OWNER_CHARACTERS] for obj in (*needed, *deployed))
    if len(cached) + len(owners) > MAX_LISTED:
        return None
    return StoreUse(listed_at=now.isoformat(), paths=cached, owners=owners)


def _succeeded(job: Obj) -> bool:
    """A failed job may go on: ``spec.retries`` can be raised."""
    found = job.get("status", {}).get("conditions", [])
    return any(item["type"] == conditions.COMPLETE and item["status"] == "True" for item in found)


def _path(obj: Obj, part: str) -> str:
    return str((obj.get("status", {}).get(part) or {}).get("path", ""))


def _mounted(server: Obj) -> Iterable[str]:
    """Folders of the store that a Deployment's pods mount: a revision serves its own model, whatever the spec says."""
    for container in server["spec"]["template"]["spec"]["containers"]:
        yield from (mount.get("subPath", "") for mount in container.get("volumeMounts", []))
