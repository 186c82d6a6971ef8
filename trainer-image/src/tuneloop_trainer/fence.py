"""One trainer at a time writes a job's folder, also when a node that was given up still runs its pod.

A Job makes the next pod when the old one has ended. A pod of a lost node only counts as ended: its processes may go on
for minutes, on a store that the next pod shares. The one that came last holds the fence; any other finds out at its
next step or checkpoint, and ends. Never waits for another.
"""

from pathlib import Path
from uuid import uuid4

from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.files import write_atomic


class Fence:
    """A file with the name of the process that may write."""

    def __init__(self, folder: Path, *, leads: bool = True) -> None:
        self._leads = leads  # of several processes only one writes
        self._path = folder / "trainer"
        self._name = uuid4().hex

    def take(self) -> None:
        """From now on this process writes, and no other."""
        if self._leads:
            write_atomic(self._path, self._name.encode())

    def check(self) -> None:
        """Raise ``Terminated`` when another process has taken the fence; take it where nobody has."""
        if not self._leads:
            return
        if not self._path.is_file():
            self.take()
        elif self._path.read_bytes() != self._name.encode():
            raise StageError(
                Reason.TERMINATED, "another pod trains this job now, since this one's node was given up; it ends here."
            )
