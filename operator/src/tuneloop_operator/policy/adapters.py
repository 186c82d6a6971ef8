"""Which version of each adapter is wanted, and where it is. A resolved version outlives the job it came from.

``resolve`` is the one place that says which version is wanted; what is loaded comes after it. Pure.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol

from tuneloop_core.api.affinity import LabelSelector
from tuneloop_core.api.modeldeployment import AdapterSource, AdapterSpec
from tuneloop_core.api.modeldeployment_status import AdapterStatus
from tuneloop_core.serving import Adapter, AdapterList, ServerStatus
from tuneloop_operator.policy import candidates, reasons
from tuneloop_operator.policy.adapterfetch import Fetched, reason_of
from tuneloop_operator.policy.candidates import Candidate, Need, unfit
from tuneloop_operator.policy.conditions import cut, timestamp
from tuneloop_operator.policy.verdicts import State


class Jobs(Protocol):
    """The FineTuneJobs of the deployment's namespace."""

    def find(self, name: str) -> Candidate | None:
        """The one of this name."""

    def matching(self, selector: LabelSelector) -> Sequence[Candidate]:
        """Those with these labels."""


@dataclass(frozen=True)
class Resolved:
    """One adapter of the spec: the version wanted where there is one, and why it is not (yet) the one asked for."""

    name: str
    digest: str = ""
    path: str = ""
    reason: str = ""  # empty: nothing stands against it
    message: str = ""
    stalled: bool = False
    source: str = ""  # what the version was resolved from: ``source_of``
    base: str = ""
    rank: int = 0
    job: str = ""
    job_created: str = ""
    refused: bool = False  # the version is known, and must not be loaded
    next: str = ""  # the engine's name of the version that is to take its place
    passed: str = ""  # why a newer one that a selector found is not wanted; a constant

    @property
    def age(self) -> tuple[str, str]:
        """Of its job, to compare with a candidate's."""
        return self.job_created, self.job

    @property
    def wire(self) -> Adapter | None:
        """As the server wants it; None without a version that may be loaded."""
        if not self.digest or self.refused:
            return None
        return Adapter(name=self.name, digest=self.digest, path=self.path)

    @property
    def still(self) -> str:
        """The version that is served meanwhile, in words."""
        return f"; still serving version {self.digest.removeprefix('sha256:')[:12]}" if self.digest else ""


def source_of(source: AdapterSource) -> str:
    """What the user asked for, to see a change of it: short, since the status keeps it."""
    if source.fine_tune_job:
        return f"finetunejob://{source.fine_tune_job}"
    text = source.model_dump_json(by_alias=True, exclude_defaults=True, exclude={"credentials_secret"})
    return f"{'selector' if source.selector else 'uri'}:{hashlib.sha256(text.encode()).hexdigest()[:24]}"


@dataclass(frozen=True)
class Sources:
    """What versions are resolved from: jobs, and by adapter name the fetches that are not yet in the status."""

    jobs: Jobs
    fetched: Mapping[str, Fetched] = field(default_factory=dict)


def resolve(
    specs: Iterable[AdapterSpec], known: Iterable[AdapterStatus], sources: Sources, need: Need
) -> list[Resolved]:
    """Each adapter of the spec, in order, with the version that is wanted."""
    before = {status.name: status for status in known}
    return [_resolve(spec, _known(spec.name, before.get(spec.name)), sources, need) for spec in specs]


def _known(name: str, before: AdapterStatus | None) -> Resolved:
    """The version known so far."""
    if before is None or not before.digest:
        return Resolved(name)
    return Resolved(
        name,
        before.digest,
        before.path,
        source=before.source,
        base=before.base,
        rank=before.rank,
        job=before.job,
        job_created=before.job_created or "",
    )


def _resolve(spec: AdapterSpec, known: Resolved, sources: Sources, need: Need) -> Resolved:
    kept = Resolved(spec.name) if unfit(known.base, known.rank, need) else known  # what does not fit is not served
    if spec.source.uri is not None:
        return _by_uri(spec, known, kept, sources.fetched.get(spec.name), need)
    if spec.source.selector is not None:
        return _by_selector(spec, kept, sources.jobs.matching(spec.source.selector), need)
    return _by_name(spec, kept, sources.jobs, need)


# ---- by a URI ------------------------------------------------------------------------------------------------------


def _by_uri(spec: AdapterSpec, known: Resolved, kept: Resolved, fetched: Fetched | None, need: Need) -> Resolved:
    """What was fetched, once and for all; ``fetched`` is None when that is in the status already."""
    if fetched is None:
        return _judged(spec, known, Resolved(spec.name), need)
    if fetched.found is None:
        about = f"adapter {spec.name}: "  # once: a message of the status may come back as the verdict's
        message = about + fetched.verdict.message.removeprefix(about)
        stalled = fetched.verdict.state is State.STALLED
        return replace(kept, reason=reason_of(fetched.verdict), message=message, stalled=stalled)
    found = fetched.found
    base = found.facts.base if found.facts.base.partition("://")[0] == need.base.partition("://")[0] else ""
    source = source_of(spec.source)
    new = Resolved(spec.name, found.digest, found.path, source=source, base=base, rank=found.facts.rank)
    return _judged(spec, new, kept, need)


def _judged(spec: AdapterSpec, version: Resolved, kept: Resolved, need: Need) -> Resolved:
    """The version; where it does not fit the one before, with the reason, or without one itself, but not loaded."""
    found = unfit(version.base, version.rank, need)
    if found is None:
        return version
    message = f"adapter {spec.name}: {spec.source.uri} {found.message}{kept.still}"
    return _stalls(kept if kept.digest else replace(version, refused=True), found.reason, message)


# ---- by the name of a job ------------------------------------------------------------------------------------------


def _by_name(spec: AdapterSpec, kept: Resolved, jobs: Jobs, need: Need) -> Resolved:
    name = spec.source.fine_tune_job or ""
    job = jobs.find(name)
    if job is None:
        if kept.digest and kept.job in ("", name):  # the job may go once its artifact is served
            return kept
        words = f"waiting for FineTuneJob {name}: there is none of that name in this namespace{kept.still}"
        return _waits(kept, words)
    if job.failed:
        message = f"FineTuneJob {name} failed ({job.failed}){kept.still}. Name another job, or remove the adapter"
        return _stalls(kept, reasons.FINETUNEJOB_FAILED, message)
    if not job.digest:
        return _waits(kept, f"waiting for FineTuneJob {name} ({job.stage or 'not begun'}){kept.still}")
    found = candidates.misfit(job, need)
    if found is not None:
        other = kept if kept.job != name else Resolved(kept.name)
        return _stalls(other, found.reason, f"FineTuneJob {name} {found.message}{other.still}")
    return _of_job(spec, job, need)


# ---- by labels -----------------------------------------------------------------------------------------------------


def _by_selector(spec: AdapterSpec, kept: Resolved, jobs: Sequence[Candidate], need: Need) -> Resolved:
    """The newest complete job's version, but never an older one than is served: deleting a job rolls nothing back."""
    choice = candidates.choose(jobs, need)
    mine = kept if kept.source == source_of(spec.source) else Resolved(kept.name)
    if choice.job is not None and choice.job.age >= mine.age:
        taken = _of_job(spec, choice.job, need)
        return replace(taken, message=choice.message, passed=candidates.passed(jobs, taken.age, need))
    if mine.digest:
        words = f"serving the version of {mine.job}, the newest seen; {choice.message}"
        return replace(mine, message=words, passed=candidates.passed(jobs, mine.age, need))
    if choice.stalled:
        return _stalls(kept, choice.reason, choice.message + kept.still)
    return _waits(kept, choice.message + kept.still)


def _of_job(spec: AdapterSpec, job: Candidate, need: Need) -> Resolved:
    return Resolved(
        spec.name,
        job.digest,
        job.path,
        source=source_of(spec.source),
        base=job.base,
        rank=job.rank,
        job=job.name,
        job_created=job.created,
    )


def _waits(kept: Resolved, message: str) -> Resolved:
    return replace(kept, reason=reasons.WAITING_FOR_JOB, message=message)


def _stalls(kept: Resolved, reason: str, message: str) -> Resolved:
    return replace(kept, reason=reason, message=message, stalled=True)


# ---- what is loaded ------------------------------------------------------------------------------------------------


def wanted_list(resolved: Iterable[Resolved]) -> AdapterList:
    """adapters.json: every adapter that has a version."""
    return AdapterList(adapters=[adapter for item in resolved if (adapter := item.wire) is not None])


def statuses(resolved: Iterable[Resolved], pods: Mapping[str, ServerStatus], ready: int) -> list[AdapterStatus]:
    """Where each adapter is, by what the ready server pods say (``pods`` by address, ``ready`` in all)."""
    return [_status(item, pods, ready) for item in resolved]


def dated(found: Iterable[AdapterStatus], known: Iterable[AdapterStatus], now: datetime) -> list[AdapterStatus]:
    """With when each version took over; ``known`` is the status before."""
    before = {status.name: status for status in known if status.digest}
    return [status.model_copy(update={"since": _since(status, before.get(status.name), now)}) for status in found]


def _since(status: AdapterStatus, before: AdapterStatus | None, now: datetime) -> str | None:
    if before is not None and before.digest == status.digest:
        return before.since
    return timestamp(now) if status.digest else None


def _status(item: Resolved, pods: Mapping[str, ServerStatus], ready: int) -> AdapterStatus:
    wire = item.wire
    fields: dict[str, Any] = {
        "name": item.name,
        "digest": item.digest,
        "path": item.path,
        "reason": item.reason,
        "message": cut(item.message),
        "source": item.source,
        "base": item.base,
        "rank": item.rank,
        "job": item.job,
        "job_created": item.job_created or None,
        "next_engine_name": item.next or None,
    }
    if wire is None:
        return AdapterStatus(state="Failed" if item.stalled else "Waiting", **fields)
    said = [state for pod in pods.values() for state in pod.adapters if state.engine_name == wire.engine_name]
    loaded = sum(state.answers for state in said)
    failed = [state for state in said if state.state == "Failed"]
    fields |= {"engine_name": wire.engine_name, "ready_replicas": loaded}
    if failed:
        why = {"reason": reasons.ADAPTER_FAILED, "message": cut(failed[0].message)}
        return AdapterStatus(state="Failed", **fields | why)
    return AdapterStatus(state="Ready" if ready and loaded >= ready else "Loading", **fields)
