"""Which kinds are watched, and what kopf does with their events: into the inbox, nothing else."""

from typing import Any

import kopf

from tuneloop_core.constants import LABEL_MANAGED_BY, MANAGED_BY
from tuneloop_operator.kube.resources import (
    CLAIMS,
    CONFIGMAPS,
    DEPLOYMENTS,
    FINETUNEJOBS,
    JOBS,
    LEASES,
    MODELDEPLOYMENTS,
    PODS,
    SERVICES,
    Resource,
)
from tuneloop_operator.reconcile.heartbeat import Heartbeat
from tuneloop_operator.reconcile.inbox import Inbox

OWN = (FINETUNEJOBS, MODELDEPLOYMENTS)
CHILDREN = (JOBS, PODS, DEPLOYMENTS, CLAIMS, CONFIGMAPS, SERVICES)


def build_registry(inbox: Inbox, heartbeat: Heartbeat, login: Any) -> kopf.OperatorRegistry:
    """kopf's handlers: an index (the barrier "all first lists are complete") and an event handler for each kind."""
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(login)
    for resource in (*OWN, *CHILDREN):
        _watch(registry, resource, inbox)

    if heartbeat.expected:
        _watch_lease(registry, heartbeat)
    return registry


def _watch_lease(registry: kopf.OperatorRegistry, heartbeat: Heartbeat) -> None:
    @kopf.on.event(*selector(LEASES), id="lease", registry=registry)
    async def lease(body: kopf.Body, **_: Any) -> None:
        heartbeat.seen(dict(body))


def _watch(registry: kopf.OperatorRegistry, resource: Resource, inbox: Inbox) -> None:
    @kopf.index(*selector(resource), id=f"index-{resource.plural}", registry=registry)
    async def index(body: kopf.Body, **_: Any) -> None:
        inbox.see(dict(body))

    @kopf.on.event(*selector(resource), id=f"event-{resource.plural}", registry=registry)
    async def event(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002 - kopf's name
        (inbox.gone if type == "DELETED" else inbox.wake)(dict(body))


def selector(resource: Resource) -> tuple[str, str, str]:
    """kopf's (group, version, plural)."""
    return resource.group, resource.version, resource.plural


def select(settings: kopf.OperatorSettings, lease: str) -> None:
    """Let the API server filter: children by our label, Leases by name too."""
    for resource in (*CHILDREN, LEASES):
        settings.watching.label_selectors[selector(resource)] = f"{LABEL_MANAGED_BY}={MANAGED_BY}"
    settings.watching.field_selectors[selector(LEASES)] = f"metadata.name={lease}"
