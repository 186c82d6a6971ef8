"""What can go wrong with the API server, as exceptions that callers tell apart. Never holds a token or a body."""

from typing import Any


class ApiError(Exception):
    """The API server answered with an error status."""

    expected = True  # logged without a traceback: the message says all

    def __init__(self, status: int, reason: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


class NotFoundError(ApiError):
    """404: the object or its kind is not there."""


class ConflictError(ApiError):
    """409: it exists already, or our copy is old, or the UID is another."""


class ForbiddenError(ApiError):
    """403: no right, or admission (a quota, a policy) refused it."""


class InvalidError(ApiError):
    """422 or 400: the object is wrong; trying again does not help."""


class ApiUnavailableError(Exception):
    """The server did not answer in time, or the connection broke. Worth another try."""

    expected = True


class WritesFencedError(Exception):
    """This process may not write: it does not hold the Lease (any more)."""

    expected = True


_BY_STATUS: dict[int, type[ApiError]] = {
    400: InvalidError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    422: InvalidError,
}


def error_of(status: int, body: Any, retry_after: str | None) -> ApiError:
    """Build the error from a response: a ``metav1.Status`` where the server sent one."""
    details = body if isinstance(body, dict) else {}
    wait = float(retry_after) if retry_after and retry_after.isdigit() else None
    kind = _BY_STATUS.get(status, ApiError)
    return kind(status, str(details.get("reason", "")), str(details.get("message", body))[:2000], retry_after=wait)
