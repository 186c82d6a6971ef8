"""Keeps the gateways' counters of the rollouts in progress, to tell what each version did since the step began.

In memory only: an operator that restarts counts the step's requests anew, which costs time and never a wrong verdict.
"""

from collections.abc import Callable, Mapping

from tuneloop_core.serving import DeploymentLoad
from tuneloop_operator.names import Key
from tuneloop_operator.policy.armcounts import Step, measure
from tuneloop_operator.policy.arms import Arm

Snapshot = Mapping[Key, Mapping[str, DeploymentLoad]]


class ArmLedger:
    """Counters at the beginning of each step, and the last ones."""

    def __init__(self, wake: Callable[[Key], None]) -> None:
        self._wake = wake
        self._heard = False
        self._steps: dict[Key, Step] = {}
        self._first: dict[Key, dict[str, DeploymentLoad]] = {}
        self._last: dict[Key, dict[str, DeploymentLoad]] = {}

    def note(self, snapshot: Snapshot) -> None:
        """The gateways were asked; whoever is in a rollout is looked at again when something changed."""
        self._heard = True
        for key in self._last.keys() - snapshot.keys() - self._steps.keys():
            del self._last[key]
        for key, loads in snapshot.items():
            kept = self._last.get(key, {}) if key in self._steps else {}
            now = {**kept, **loads}
            if key in self._steps and now != kept:
                self._wake(key)
            self._last[key] = now

    def measure(self, key: Key, step: Step) -> tuple[Arm, Arm]:
        """(stable, canary) since this step was first asked for; nothing before the gateways were heard."""
        if not self._heard:
            return Arm(), Arm()
        if self._steps.get(key) != step:
            self._steps[key], self._first[key] = step, dict(self._last.get(key, {}))
        return measure(step, self._first[key], self._last.get(key, {}))

    def forget(self, key: Key) -> None:
        """No rollout is in progress."""
        self._steps.pop(key, None)
        self._first.pop(key, None)
