"""Accelerator-seconds, prices and cold starts as metrics: what each status write adds, by namespace and by resource.

Counters begin at 0 with the process, as Prometheus expects; what a job took in all is in its status.usage. Series of
single resources are bounded: those beyond the bound are only in the sums.
"""

from tuneloop_core.api.finetunejob import FineTuneJob
from tuneloop_core.api.finetunejob_status import FineTuneJobStatus, PlanStatus, UsageStatus
from tuneloop_core.api.modeldeployment_status import ColdStartStatus
from tuneloop_core.constants import QUEUE_LABEL
from tuneloop_operator import metrics
from tuneloop_operator.names import Key

MOST_JOBS = 1000
MOST_DEPLOYMENTS = 200
"""Each has some 110 series: a histogram a phase."""


class Starts:
    """Cold starts, and which deployments have series of their own."""

    def __init__(self) -> None:
        self._series: dict[Key, set[str]] = {}  # phases by deployment

    def note(self, key: Key, before: ColdStartStatus | None, now: ColdStartStatus | None) -> None:
        """A replica's start that the status has only now."""
        if now is None or not now.time or (before is not None and before.time == now.time):
            return
        phases = {phase.name: phase.seconds for phase in now.phases}
        phases["total"] = sum(phases.values())
        shown = key in self._series or len(self._series) < MOST_DEPLOYMENTS
        for phase, seconds in phases.items():
            metrics.COLD_START_SECONDS.labels(key.namespace, key.name if shown else "", phase).observe(seconds)
        if shown:
            self._series.setdefault(key, set()).update(phases)

    def forget(self, key: Key) -> None:
        """The deployment is gone, and its series with it."""
        for phase in self._series.pop(key, ()):
            metrics.COLD_START_SECONDS.remove(key.namespace, key.name, phase)


class Ledger:
    """Which series of single jobs there are."""

    def __init__(self) -> None:
        self._series: dict[Key, tuple[str, str]] = {}

    def note(self, key: Key, before: FineTuneJob, status: FineTuneJobStatus) -> None:
        """A job's usage as it is now; ``before`` has what was counted already."""
        if status.usage is None:
            return
        queue, currency = before.metadata.labels.get(QUEUE_LABEL, ""), (status.plan or PlanStatus()).currency
        known = before.status.usage or UsageStatus()
        seconds = metrics.ACCELERATOR_SECONDS.labels(key.namespace, queue)
        seconds.inc(max(0.0, status.usage.accelerator_seconds - known.accelerator_seconds))
        price = metrics.PRICE.labels(key.namespace, queue, currency)
        price.inc(max(0.0, status.usage.price - known.price))
        self._show(key, (queue, currency), status.usage)

    def forget(self, key: Key) -> None:
        """The job is gone, and its series with it."""
        if key in self._series:
            queue, currency = self._series.pop(key)
            metrics.JOB_ACCELERATOR_SECONDS.remove(key.namespace, key.name, queue)
            metrics.JOB_PRICE.remove(key.namespace, key.name, queue, currency)

    def _show(self, key: Key, labels: tuple[str, str], usage: UsageStatus) -> None:
        if self._series.get(key, labels) != labels:
            self.forget(key)
        if key not in self._series and len(self._series) >= MOST_JOBS:
            return
        self._series[key] = labels
        queue, currency = labels
        metrics.JOB_ACCELERATOR_SECONDS.labels(key.namespace, key.name, queue).set(usage.accelerator_seconds)
        metrics.JOB_PRICE.labels(key.namespace, key.name, queue, currency).set(usage.price)
