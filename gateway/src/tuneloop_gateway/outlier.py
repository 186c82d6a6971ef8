"""Which replicas are passed over because they fail, for how long, and how they come back.

A replica that failed ``FAILURES`` times in a row is ejected for ``eject_seconds``, twice as long each further time up
to ``eject_longest_seconds``. Failures are only a suspicion (a poisonous prompt fails everywhere), so never more than
``eject_share`` of a deployment's replicas are ejected for them. A refused connection is a fact, and ejects at once.
When its time is over, exactly one request goes there as a probe while the others still pass it over: the first byte of
its answer brings the replica back, another failure sends it out again. Pure: times are seconds of one monotonic clock,
given by the caller. Never decides which replica takes a request; ``balance`` does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

FAILURES: Final = 5  # in a row


@dataclass(frozen=True)
class Rules:
    """How long, and how many."""

    eject_seconds: float = 5.0
    eject_longest_seconds: float = 60.0
    eject_share: float = 0.5


@dataclass
class Health:
    """What is known of one replica."""

    failures: int = 0  # in a row
    ejections: int = 0  # in a row, without a whole answer between them
    until: float = 0.0  # 0: it takes requests; else it is out until then, and after that until a probe succeeds
    probing: bool = False

    def out(self, now: float) -> bool:
        """Whether it is passed over."""
        return self.until > 0 and (self.probing or self.until > now)

    def due(self, now: float) -> bool:
        """Whether the next request should be its probe."""
        return 0 < self.until <= now and not self.probing

    def answered(self) -> bool:
        """The first byte of a good answer came; True if that brings it back."""
        back, self.until, self.probing = self.until > 0, 0.0, False
        return back

    def succeeded(self) -> None:
        """An answer was whole."""
        self.failures = self.ejections = 0

    def gave_up(self) -> None:
        """The client left: nothing was learnt, so the next request is the probe."""
        self.probing = False


def failed(health: Health, others: Sequence[Health], now: float, rules: Rules) -> float:
    """A replica failed a request; ``others`` are all of its deployment, itself included or not.

    Returns:
        For how many seconds it is ejected now; 0 if it is not.
    """
    health.failures += 1
    if health.until > 0:  # the probe failed, or one that was sent before the ejection
        return eject(health, now, rules) if health.probing else 0.0
    out = sum(other.until > 0 for other in others)
    if health.failures < FAILURES or out + 1 > len(others) * rules.eject_share:
        return 0.0
    return eject(health, now, rules)


def unreachable(health: Health, now: float, rules: Rules) -> float:
    """A connection was refused or timed out; returns for how many seconds it is ejected now, 0 if it was already."""
    health.failures += 1
    if health.until > now and not health.probing:
        return 0.0
    return eject(health, now, rules)


def eject(health: Health, now: float, rules: Rules) -> float:
    """Pass it over, twice as long each time; returns for how many seconds."""
    seconds = min(rules.eject_seconds * 2.0**health.ejections, rules.eject_longest_seconds)
    health.ejections = min(health.ejections + 1, 30)
    health.until, health.probing = now + seconds, False
    return seconds
