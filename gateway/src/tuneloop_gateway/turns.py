"""How many requests of each deployment are with its replicas, and how many may be: beyond that they wait, fairly.

A replica runs so many requests at once; what comes beyond would wait inside it, first come first, and one key's
thousand requests would be before everybody's. So no more go there than it runs, and ``hold`` keeps the rest. Each
gateway counts its own: several of them may send more together, and those wait in the engine, as they would without.
Pure. Never waits.
"""

from collections.abc import Mapping
from typing import Final

from tuneloop_gateway.measure import DeploymentKey

SLACK: Final = 1.25  # of what the engine runs: its own queue never runs dry while ours is looked at
CPU_SEQUENCES: Final = 128  # vLLM 0.32's server on CPU, EngineArgs.get_batch_defaults


def room_of(replicas: int, sequences: int, default: int, *, on_cpu: bool = False) -> int:
    """Requests that may be with so many replicas.

    ``sequences`` is the engine's --max-num-seqs, 0 if it is not set; ``default`` is of a replica of unknown strength.
    """
    if sequences:
        return replicas * _with_slack(sequences)
    return replicas * (min(default, _with_slack(CPU_SEQUENCES)) if on_cpu else default)


def _with_slack(sequences: int) -> int:
    return int(sequences * SLACK) + 1


class Turns:
    """The counts of one process."""

    def __init__(self) -> None:
        self._room: Mapping[DeploymentKey, int] = {}
        self._ongoing: dict[DeploymentKey, int] = {}

    def set_room(self, room: Mapping[DeploymentKey, int]) -> None:
        """By the table of now; a deployment that is not named has none."""
        self._room = room

    def room(self, key: DeploymentKey) -> int:
        """Requests of the deployment that may be with its replicas."""
        return self._room.get(key, 0)

    def begin(self, key: DeploymentKey, *, anyway: bool = False) -> bool:
        """Take a place, if there is one; ``anyway`` where it is taken only to learn that nothing is there."""
        ongoing = self._ongoing.get(key, 0)
        if ongoing >= self._room.get(key, 0) and not anyway:
            return False
        self._ongoing[key] = ongoing + 1
        return True

    def end(self, key: DeploymentKey) -> None:
        """Give a place back."""
        left = self._ongoing[key] - 1
        if left:
            self._ongoing[key] = left
        else:
            del self._ongoing[key]
