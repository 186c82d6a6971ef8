"""Proves that the watch path is alive, without a write of its own: our Lease is renewed anyway, and we watch it.

If renewals succeed but no watch event of the Lease arrives, then events of other objects do not arrive either. Never
restarts anything: the kubelet does, by the liveness probe.
"""

import time
from typing import Any

from tuneloop_operator import metrics

Obj = dict[str, Any]

FROZEN_AFTER_SECONDS = 75.0  # more than kopf's 70 s, after which it opens a silent watch anew by itself


class Heartbeat:
    """When the watch last delivered a renewal of our Lease; idle until ``start``."""

    def __init__(self, lease_name: str, identity: str, frozen_after: float = FROZEN_AFTER_SECONDS) -> None:
        self.lease_name, self._identity, self._frozen_after = lease_name, identity, frozen_after
        self._last: float | None = None

    @property
    def expected(self) -> bool:
        """Whether renewals are expected to be seen."""
        return self._last is not None

    def start(self) -> None:
        """From now on renewals are expected."""
        self._last = time.monotonic()

    def seen(self, lease: Obj) -> None:
        """A watch event of the Lease; one held by another proves nothing about ours."""
        if lease.get("spec", {}).get("holderIdentity") == self._identity:
            self._last = time.monotonic()

    def age(self) -> float:
        """Seconds since the last sign of life; 0 while none is expected."""
        age = 0.0 if self._last is None else time.monotonic() - self._last
        metrics.WATCH_AGE.set(age)
        return age

    def frozen(self) -> bool:
        """Whether the watch path is dead."""
        return self.age() > self._frozen_after
