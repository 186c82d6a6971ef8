"""How long a replica took from the moment it was wanted to its first answer, by phase. Pure.

The pod's own timestamps give the cluster's share, whole seconds as Kubernetes writes them; the server's phases give the
rest. A container that was restarted is no cold start: its image and its model's pages were there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Any, Final

from tuneloop_core.api.modeldeployment_status import ColdStartPhase, ColdStartStatus
from tuneloop_core.serving import ServerStatus
from tuneloop_operator.policy.conditions import parse_time, timestamp
from tuneloop_operator.policy.pods import condition

Obj = dict[str, Any]

RECENT_KEPT = 5
WITHIN_ENGINE: Final = frozenset({"weights", "loadWeights", "model"})
"""Phases of the server that it measures inside of ``engine``: the model's weights."""
WARM_UP: Final = frozenset({"warmUp", "adapters"})


@dataclass(frozen=True)
class Start:
    """One replica's start."""

    at: datetime  # when it could answer
    phases: Mapping[str, float]  # seconds, in order

    @property
    def seconds(self) -> float:
        """In all."""
        return sum(self.phases.values())


def cold_start(
    old: ColdStartStatus | None, pods: Sequence[Obj], servers: Mapping[str, ServerStatus]
) -> ColdStartStatus | None:
    """The block with the newest start that it does not have yet; the old one where there is none."""
    found = [start for pod in pods if (start := measure(pod, servers.get(pod.get("status", {}).get("podIP", ""))))]
    last = max(found, key=lambda start: start.at, default=None)
    if last is None or (old is not None and old.time and timestamp(last.at) <= old.time):
        return old
    recent = [*(old.recent if old is not None else []), round(last.seconds, 1)][-RECENT_KEPT:]
    phases = [ColdStartPhase(name=name, seconds=round(seconds, 1)) for name, seconds in last.phases.items()]
    return ColdStartStatus(seconds=round(median(recent), 1), recent=recent, time=timestamp(last.at), phases=phases)


def measure(pod: Obj, server: ServerStatus | None) -> Start | None:
    """A pod's start; None while it goes on, and where something of it is not known."""
    scheduled, running = condition(pod, "PodScheduled"), _container(pod)
    if server is None or not server.ready or scheduled is None or running is None:
        return None
    created, placed = parse_time(pod["metadata"]["creationTimestamp"]), parse_time(scheduled["lastTransitionTime"])
    inside = split(server.phases)
    phases = {"scheduled": _seconds(created, placed), "image": _seconds(placed, running)} | inside
    return Start(running + timedelta(seconds=sum(inside.values())), phases)


def split(phases: Mapping[str, float]) -> dict[str, float]:
    """The server's own phases as model, engine and warmUp; together they are its ``total``."""
    model = sum(seconds for name, seconds in phases.items() if name in WITHIN_ENGINE)
    warm_up = sum(seconds for name, seconds in phases.items() if name in WARM_UP)
    rest = sum(seconds for name, seconds in phases.items() if name not in WITHIN_ENGINE | WARM_UP | {"total"})
    total = phases.get("total", rest + warm_up)
    return {"model": model, "engine": max(0.0, total - model - warm_up), "warmUp": warm_up}


def _container(pod: Obj) -> datetime | None:
    """When the server's container started, if that was its first start."""
    for each in pod.get("status", {}).get("containerStatuses") or []:
        running = (each.get("state") or {}).get("running") or {}
        if running.get("startedAt") and not each.get("restartCount"):
            return parse_time(running["startedAt"])
    return None


def _seconds(begin: datetime, end: datetime) -> float:
    return max(0.0, (end - begin).total_seconds())
