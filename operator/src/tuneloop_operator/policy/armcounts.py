"""What each version did since a rollout's step began, from the gateways' counters. Pure; the test is ``policy.arms``.

Counters are cumulative by gateway; a gateway that restarted is another one, one that is gone keeps what it said last.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from tuneloop_core.api.rollout import RolloutKind, RolloutStatus
from tuneloop_core.serving import DeploymentLoad, Histogram, ModelLoad
from tuneloop_operator.policy.arms import Arm
from tuneloop_operator.policy.latency import difference, merged

NOTHING: Final = ModelLoad(name="")

Loads = Mapping[str, DeploymentLoad]  # by gateway instance
Change = tuple[ModelLoad, ModelLoad]  # before, after


@dataclass(frozen=True)
class Step:
    """The step that is measured: which versions, and since when."""

    kind: RolloutKind
    name: str
    stable: str
    canary: str
    step: int

    @classmethod
    def of(cls, status: RolloutStatus) -> "Step":
        """The step that a rollout is in."""
        return cls(status.kind, status.name, status.stable, status.canary, status.step)

    def is_stable(self, load: ModelLoad) -> bool:
        """Whether these are counts of the version that serves."""
        if self.kind == "Revision":
            return load.revision != self.canary
        return (load.name, load.engine_name) == (self.name, f"{self.name}@{self.stable}")

    def is_canary(self, load: ModelLoad) -> bool:
        """Whether these are counts of the new version."""
        if self.kind == "Revision":
            return load.revision == self.canary
        return (load.name, load.engine_name) == (self.name, f"{self.name}@{self.canary}")


def measure(step: Step, before: Loads, after: Loads) -> tuple[Arm, Arm]:
    """(stable, canary) between two snapshots."""
    changes = [change for instance, load in after.items() for change in _changes(before.get(instance), load)]
    return (
        _arm([change for change in changes if step.is_stable(change[1])]),
        _arm([change for change in changes if step.is_canary(change[1])]),
    )


def _changes(before: DeploymentLoad | None, after: DeploymentLoad) -> Iterable[Change]:
    known = {_version(load): load for load in before.models} if before else {}
    return [(known.get(_version(load), NOTHING), load) for load in after.models]


def _version(load: ModelLoad) -> tuple[str, str, str]:
    return load.name, load.engine_name, load.revision


def _arm(changes: list[Change]) -> Arm:
    return Arm(
        requests=_count(changes, "requests"),
        errors=_count(changes, "errors"),
        good=_count(changes, "feedback_good"),
        bad=_count(changes, "feedback_bad"),
        ttft=_histogram(changes, "ttft"),
        tpot=_histogram(changes, "tpot"),
    )


def _count(changes: list[Change], field: str) -> int:
    """A counter that fell began anew."""
    pairs = [(int(getattr(before, field)), int(getattr(after, field))) for before, after in changes]
    return sum(late - early if late >= early else late for early, late in pairs)


def _histogram(changes: list[Change], field: str) -> Histogram | None:
    return merged([difference(getattr(before, field), getattr(after, field)) for before, after in changes])
