"""What went wrong with an export, in one shape: which URI, what was said, what to change. Never a secret.

A refusal that a person must mend ends the pod at once; what time may mend counts as a try.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from tuneloop_core.api.finetunejob import Output
from tuneloop_core.constants import EXIT_TRANSIENT, EXIT_USER_ERROR
from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError

KEPT = "The artifact is kept in the store."
MOST_WORDS = 400


class ExportError(Exception):
    """What a target said (``said``, ``status`` by HTTP or 0) and what a person can do about it (``change``)."""

    def __init__(self, said: str, change: str, *, transient: bool = False, status: int = 0) -> None:
        super().__init__(said)
        self.said, self.change, self.transient, self.status = said, change, transient, status


class ExportFailedError(StageError):
    """``ExportFailed`` in a sentence; the exit code says whether a person or time may mend it."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(Reason.EXPORT_FAILED, message)
        self._transient = transient

    @property
    def exit_code(self) -> int:
        """75 counts as a try of the pod, 42 ends them."""
        return EXIT_TRANSIENT if self._transient else EXIT_USER_ERROR


@contextmanager
def failures_named(output: Output) -> Iterator[None]:
    """Turn every failure inside into ``ExportFailed`` with the URI; a refused address stays ``URIRefused``."""
    try:
        yield
    except ExportError as error:
        raise ExportFailedError(_sentence(output, error.said, error.change), transient=error.transient) from error
    except StageError as error:
        message = f"output.uri {output.uri}: {error.message} {KEPT}"
        raise (
            StageError(error.reason, message) if error.reason is Reason.URI_REFUSED else ExportFailedError(message)
        ) from error
    except httpx2.TransportError as error:
        said = f"{output.endpoint or output.uri} did not answer ({type(error).__name__}: {error})"
        change = "Check that the address is right and that this namespace's pods may reach it; it is tried again"
        raise ExportFailedError(_sentence(output, said, change), transient=True) from error


def _sentence(output: Output, said: str, change: str) -> str:
    secret = f" (Secret {output.credentials_secret})" if output.credentials_secret else ""
    shown = " ".join(said.split())[:MOST_WORDS].rstrip(".")
    return f"output.uri {output.uri}{secret}: {shown}. {change.rstrip('.')}. {KEPT}"


def http_change(status: int, keys: str, place: str) -> str:
    """What to change after an HTTP status that no better code explains; ``keys`` are those of the Secret."""
    if status == 401:
        return f"The credentials are missing or wrong: check {keys} in the Secret of output.credentialsSecret"
    if status == 403:
        return f"These credentials may not write there: give them the right, or put others into {keys} of the Secret"
    if status == 404:
        return f"Make {place}, or correct output.uri"
    if status in (413, 507):
        return "The server has no room for it: free space there or raise its limit"
    return "Look into the server's log; the export is tried again"


def is_transient(status: int) -> bool:
    """Whether time may mend it."""
    return status in (408, 425, 429) or (status >= 500 and status != 507)
