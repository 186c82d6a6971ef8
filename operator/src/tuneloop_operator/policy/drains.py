"""When pods that leave must make room: nothing answers, requests are held, and the pods to come find no room.

A pod that leaves has the chart's ``server.drainSeconds`` for its streams, which may be longer than the gateways hold a
request (``gateway.hold.maxSeconds``). While it keeps what the next pod needs (strategy Recreate, or down to zero and up
again), either its streams or the requests that wait are lost: docs/adr/0058. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tuneloop_core.api.modeldeployment_status import ColdStartStatus
from tuneloop_core.serving import DeploymentLoad
from tuneloop_operator.policy import reasons
from tuneloop_operator.policy.pods import condition
from tuneloop_operator.policy.succession import trouble

Obj = dict[str, Any]

CHANGE_SECONDS: Final = 10.0
"""For one pod to end and the next to be given its room, beside the next one's start."""
WAITS: Final = reasons.UNSCHEDULABLE
"""A pod that has no node is given one within a second or two. One that a quota refused is tried again by its ReplicaSet
in growing waits (82, 164, 328 s ...: client-go's default limiter), which no end of another pod shortens: its room would
be made for nothing."""
LAST_SECONDS: Final = 1  # of grace for a pod whose room is due: the least that still lets the kubelet end it


@dataclass(frozen=True)
class Held:
    """The requests that wait for a replica; seconds."""

    count: int = 0
    oldest: float = 0.0  # how long the first has waited
    longest: float = 0.0  # how long a gateway holds one
    start: float = 0.0  # how long a replica takes once it has room; 0 where none was measured

    @classmethod
    def of(cls, loads: Iterable[DeploymentLoad], longest: float, start: float) -> "Held":
        """Over all gateways."""
        waiting = [load for load in loads if load.queued]
        oldest = max((load.unserved_seconds for load in waiting), default=0.0)
        return cls(sum(load.queued for load in waiting), oldest, longest, start)

    @property
    def spare(self) -> float:
        """How long one may wait for room and still be answered in time; not positive where it never is."""
        return self.longest - (self.start or self.longest / 2) - CHANGE_SECONDS


def leaving(pods: Iterable[Obj]) -> list[Obj]:
    """Those that we asked to go, and that have not ended.

    Not those that their node gives up or that make way for others (evicted, preempted, lost): the room that they
    leave is not for the pods to come.
    """
    ended = ("Succeeded", "Failed")
    going = [pod for pod in pods if pod["metadata"].get("deletionTimestamp") and not _is_disrupted(pod)]
    return [pod for pod in going if pod.get("status", {}).get("phase") not in ended]


def _is_disrupted(pod: Obj) -> bool:
    return (condition(pod, "DisruptionTarget") or {}).get("status") == "True"


def blocking(pods: Sequence[Obj], deployments: Mapping[int, Obj]) -> list[Obj]:
    """The pods that leave, where they keep the room of those to come and nothing answers meanwhile."""
    going = leaving(pods)
    staying = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
    if not going or any((condition(pod, "Ready") or {}).get("status") == "True" for pod in staying):
        return []
    lacking = [trouble(each, staying, f"r{number}")[0] == WAITS for number, each in deployments.items()]
    return going if any(lacking) else []


def due(going: Iterable[Obj], held: Held) -> list[Obj]:
    """The pods that must end now, streams or not: a request that waits would be answered too late otherwise.

    None while nobody waits, nor where a start takes as long as a request is held: no stream's end would help.
    """
    if not held.count or held.spare <= 0 or held.oldest < held.spare:
        return []
    return [pod for pod in going if int(pod["metadata"].get("deletionGracePeriodSeconds") or 0) > LAST_SECONDS]


def start_seconds(measured: ColdStartStatus | None) -> float:
    """How long the last start took once it had a node: what it waited for one is not the replica's."""
    phases = measured.phases if measured is not None else []
    return sum(phase.seconds for phase in phases if phase.name != "scheduled")


def words(going: Iterable[Obj], reason: str) -> str:
    """Who keeps the room, and until when; ``reason``: why the next pod has none."""
    names = ", ".join(pod["metadata"]["name"] for pod in going)
    keeps = (
        f"{names} leaves and keeps its room until its last stream has ended, at most the chart's server.drainSeconds"
    )
    held = "; where requests wait, only as long as they can be held (gateway.hold.maxSeconds)"
    return keeps + held if reason == WAITS else keeps
