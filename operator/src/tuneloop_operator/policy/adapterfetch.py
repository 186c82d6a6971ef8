"""Adapters made elsewhere: whether each is in the store, and what its fetch Job is to do about it.

Judged by the same rules as the fetch of the base model, each for itself: one that fails is tried again with growing
waits and holds up no other. Pure.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from tuneloop_core.adapterconfig import AdapterFetchResult
from tuneloop_core.api.modeldeployment import AdapterSpec
from tuneloop_core.api.modeldeployment_status import AdapterStatus
from tuneloop_core.stages import Stage
from tuneloop_operator.policy import reasons
from tuneloop_operator.policy.digests import digest
from tuneloop_operator.policy.modelfetch import stage_before
from tuneloop_operator.policy.verdicts import Case, StageFacts, State, Verdict, invalid_result, judge

Obj = dict[str, Any]

_OURS = frozenset({reasons.CREATED, reasons.STARTING, reasons.RUNNING, reasons.RESULT_MISSING, reasons.RETRYING})


@dataclass(frozen=True)
class Fetched:
    """Where the fetch of one adapter stands; ``found`` once it is in the store."""

    verdict: Verdict
    found: AdapterFetchResult | None = None


def is_known(spec: AdapterSpec, before: AdapterStatus | None, source: str) -> bool:
    """Whether the version was resolved from this very source: it is kept, whatever became of the source since."""
    return spec.source.uri is None or (before is not None and bool(before.digest) and before.source == source)


def job_tag(spec: AdapterSpec) -> str:
    """Ten characters for what a fetch Job was made of: another name, URI or Secret is another Job."""
    return digest(spec.without_defaults()).removeprefix("sha256:")[:10]


def judge_fetch(facts: StageFacts, before: AdapterStatus | None, owner_uid: str, now: datetime) -> Fetched:
    """DONE with the result, or where the Job stands and what to do about it."""
    told = (before.reason, before.message) if before is not None and before.reason else None
    previous = stage_before(facts.job, told)
    verdict = judge(Case(Stage.FETCH, previous, facts, owner_uid, suspend=False, retries=0, now=now))
    if verdict.state is not State.DONE or verdict.said is None:
        return Fetched(verdict)
    try:
        return Fetched(verdict, AdapterFetchResult.model_validate(verdict.said.result))
    except ValidationError as error:
        return Fetched(invalid_result(Stage.FETCH, error))


def reason_of(verdict: Verdict) -> str:
    """A word for the adapter's status: the Job's own steps are all the same to its reader."""
    return reasons.ADAPTER_FETCHING if verdict.reason in _OURS else verdict.reason
