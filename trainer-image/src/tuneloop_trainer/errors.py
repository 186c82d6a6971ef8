"""The one exception that stages raise for what they understand: a reason from the contract and words for a person."""

from tuneloop_core.constants import (
    EXIT_PEER_LOST,
    EXIT_STEP_TIMEOUT,
    EXIT_TERMINATED,
    EXIT_TRANSIENT,
    EXIT_USER_ERROR,
)
from tuneloop_core.stages import Reason

_TRANSIENT = frozenset(
    {Reason.HUB_UNAVAILABLE, Reason.DEADLINE_EXCEEDED, Reason.PEERS_MISSING, Reason.ACCELERATOR_FAILED}
)
_OWN = {
    Reason.TERMINATED: EXIT_TERMINATED,
    Reason.STEP_TIMEOUT: EXIT_STEP_TIMEOUT,
    Reason.PEER_LOST: EXIT_PEER_LOST,
}
_COUNTS_AS_TRY = frozenset({Reason.OUT_OF_MEMORY, Reason.INTERNAL_ERROR, Reason.EXPORT_FAILED})


class StageError(Exception):
    """A failure with a reason. The message says what was found, what would be right, what to do next; no secrets."""

    def __init__(self, reason: Reason, message: str, needed_bytes: int = 0) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.needed_bytes = needed_bytes  # of StoreFull, where it is known

    @property
    def exit_code(self) -> int:
        """42 for what a person must mend, 75 for what time may mend, 76 and 77 for a hang and a lost peer, 143 after
        SIGTERM, else 1."""
        if self.reason in _OWN:
            return _OWN[self.reason]
        if self.reason in _TRANSIENT:
            return EXIT_TRANSIENT
        return 1 if self.reason in _COUNTS_AS_TRY else EXIT_USER_ERROR
