"""What the refusal of a child, by the API server or by a rule of ours, means for its owner.

Never retries: the queue does.
"""

from tuneloop_operator.kube.client import ForeignOwnerError
from tuneloop_operator.kube.errors import ApiError, ForbiddenError, InvalidError
from tuneloop_operator.policy import reasons
from tuneloop_operator.policy.pods import quota_words
from tuneloop_operator.policy.secrets import SecretNotAllowedError
from tuneloop_operator.policy.verdicts import State, Verdict

LOOK_AGAIN_SECONDS = 60.0

Refusal = ForeignOwnerError | SecretNotAllowedError | ApiError
REFUSALS = (ForeignOwnerError, SecretNotAllowedError, ForbiddenError, InvalidError)
"""Errors that are told in conditions rather than retried silently."""


def verdict_of(error: Refusal) -> Verdict:
    """The verdict on a stage whose child was refused."""
    reason, message, state = words_of(error)
    return Verdict(state, reason, message, look_again=LOOK_AGAIN_SECONDS)


def words_of(error: Refusal) -> tuple[str, str, State]:
    """(reason, message, state) of a refusal."""
    if isinstance(error, ForeignOwnerError):
        return reasons.FOREIGN_OBJECT, str(error), State.STALLED
    if isinstance(error, SecretNotAllowedError):
        return reasons.SECRET_NOT_ALLOWED, str(error), State.STALLED
    if "exceeded quota" in error.message:
        return reasons.QUOTA_EXCEEDED, quota_words(error.message), State.PENDING
    return reasons.REFUSED_BY_CLUSTER, f"the API server refused it: {error.message}", State.STALLED
