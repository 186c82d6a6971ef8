"""Which version of each adapter should be served, and where it is. A resolved version outlives the job it came from.

Pure.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tuneloop_core.api.finetunejob import FineTuneJob
from tuneloop_core.api.modeldeployment import AdapterSpec
from tuneloop_core.api.modeldeployment_status import AdapterStatus
from tuneloop_core.serving import Adapter, AdapterList, ServerStatus
from tuneloop_operator.policy import conditions, reasons
from tuneloop_operator.policy.conditions import cut

FindJob = Callable[[str], FineTuneJob | None]


@dataclass(frozen=True)
class Resolved:
    """One adapter of the spec: its version where there is one, and why it is not (yet) the one asked for."""

    name: str
    digest: str = ""
    path: str = ""
    reason: str = ""  # empty: nothing stands against it
    message: str = ""
    stalled: bool = False

    @property
    def wire(self) -> Adapter | None:
        """As the server wants it; None without a version."""
        if not self.digest:
            return None
        return Adapter(name=self.name, digest=self.digest, path=self.path)


def resolve(
    specs: Iterable[AdapterSpec], known: Iterable[AdapterStatus], find: FindJob, model_uri: str
) -> list[Resolved]:
    """Each adapter of the spec, in order; ``model_uri`` is the resolved base, for a word about a wrong one."""
    before = {status.name: status for status in known}
    return [_resolve(spec, before.get(spec.name), find, model_uri) for spec in specs]


def _resolve(  # noqa: PLR0911 - a table of cases
    spec: AdapterSpec, before: AdapterStatus | None, find: FindJob, model_uri: str
) -> Resolved:
    kept = Resolved(spec.name, before.digest, before.path) if before and before.digest else Resolved(spec.name)
    name = spec.source.fine_tune_job or ""
    job = find(name)
    if job is None:
        if kept.digest:  # the job may go once its artifact is served
            return kept
        return _waits(kept, f"waiting for FineTuneJob {name}: there is none of that name in this namespace")
    if conditions.holds(job.status.conditions, conditions.FAILED):
        return _failed(kept, name, job)
    artifact = job.status.artifact
    if artifact is None:
        stage = job.status.stage or "not begun"
        return _waits(kept, f"waiting for FineTuneJob {name} ({stage}){_still(kept)}")
    if artifact.kind != "Adapter":
        return _stalls(kept, reasons.WRONG_ARTIFACT, f"FineTuneJob {name} published a whole model, not an adapter")
    wrong = _wrong_base(job, model_uri)
    if wrong:
        return _stalls(kept, reasons.WRONG_ARTIFACT, f"adapter {spec.name}: {wrong}")
    return Resolved(spec.name, artifact.digest, artifact.path)


def _failed(kept: Resolved, name: str, job: FineTuneJob) -> Resolved:
    why = next((item for item in job.status.conditions if item.type == conditions.FAILED), None)
    words = f"{why.reason}: {cut(why.message, 500)}" if why else "it failed"
    message = f"FineTuneJob {name} failed ({words}){_still(kept)}. Name another job, or remove the adapter"
    return _stalls(kept, reasons.FINETUNEJOB_FAILED, message)


def _wrong_base(job: FineTuneJob, model_uri: str) -> str:
    trained = job.status.model.uri if job.status.model else ""
    if not trained or not model_uri or _repository(trained) == _repository(model_uri):
        return ""
    return f"it was trained on {trained}, but this deployment serves {model_uri}; an adapter fits its own base only"


def _repository(uri: str) -> str:
    return uri.partition("@")[0]


def _waits(kept: Resolved, message: str) -> Resolved:
    return Resolved(kept.name, kept.digest, kept.path, reasons.WAITING_FOR_JOB, message)


def _stalls(kept: Resolved, reason: str, message: str) -> Resolved:
    return Resolved(kept.name, kept.digest, kept.path, reason, message, stalled=True)


def _still(kept: Resolved) -> str:
    return f"; still serving version {kept.digest.removeprefix('sha256:')[:12]}" if kept.digest else ""


def wanted_list(resolved: Iterable[Resolved]) -> AdapterList:
    """adapters.json: every adapter that has a version."""
    return AdapterList(adapters=[adapter for item in resolved if (adapter := item.wire) is not None])


def statuses(resolved: Iterable[Resolved], pods: Mapping[str, ServerStatus], ready: int) -> list[AdapterStatus]:
    """Where each adapter is, by what the ready server pods say (``pods`` by address, ``ready`` in all)."""
    return [_status(item, pods, ready) for item in resolved]


def _status(item: Resolved, pods: Mapping[str, ServerStatus], ready: int) -> AdapterStatus:
    wire = item.wire
    fields: dict[str, Any] = {"name": item.name, "digest": item.digest, "path": item.path, "message": cut(item.message)}
    if wire is None:
        return AdapterStatus(state="Failed" if item.stalled else "Waiting", **fields)
    said = [state for pod in pods.values() for state in pod.adapters if state.engine_name == wire.engine_name]
    loaded = sum(state.state == "Loaded" for state in said)
    failed = [state for state in said if state.state == "Failed"]
    fields |= {"engine_name": wire.engine_name, "ready_replicas": loaded}
    if failed:
        return AdapterStatus(state="Failed", **fields | {"message": cut(failed[0].message)})
    return AdapterStatus(state="Ready" if ready and loaded >= ready else "Loading", **fields)
