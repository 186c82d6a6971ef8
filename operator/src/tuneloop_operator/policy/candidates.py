"""FineTuneJobs as sources of adapter versions: what each has, and which of several is the one to serve. Pure.

Reads the raw objects of the cache: a selector may look at thousands of jobs, of which one is chosen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop_core.api.affinity import LabelRequirement, LabelSelector
from tuneloop_operator.policy import conditions, reasons
from tuneloop_operator.policy.conditions import cut

Obj = dict[str, Any]

TOLD = 3  # jobs that a message names; the others are counted
WHY_LIMIT = 160  # characters of one job's reason among several


@dataclass(frozen=True)
class Candidate:
    """One FineTuneJob: its artifact where it has one, else how far it is."""

    name: str
    created: str  # RFC 3339: such texts compare as times do
    complete: bool = False
    failed: str = ""  # "GateFailed: evalLoss ..." where it failed
    stage: str = ""
    kind: str = ""  # of the artifact: Adapter | Model; empty without one
    digest: str = ""
    path: str = ""
    base: str = ""  # the resolved URI of what it was trained on
    rank: int = 0

    @property
    def age(self) -> tuple[str, str]:
        """Sorts the newest last: by creation, then by name."""
        return self.created, self.name


@dataclass(frozen=True)
class Need:
    """What an adapter must fit."""

    base: str = ""  # resolved URI of the deployment's model; empty while it is being fetched
    max_rank: int = 512


@dataclass(frozen=True)
class Misfit:
    """Why an artifact cannot be served here."""

    reason: str
    message: str


def read(job: Obj) -> Candidate:
    """A FineTuneJob as the API server holds it."""
    metadata, status = job["metadata"], job.get("status") or {}
    artifact, method = status.get("artifact") or {}, (job.get("spec") or {}).get("method") or {}
    true = {item["type"]: item for item in status.get("conditions") or () if item.get("status") == "True"}
    failed = true.get(conditions.FAILED)
    return Candidate(
        name=metadata["name"],
        created=metadata.get("creationTimestamp") or "",
        complete=conditions.COMPLETE in true,
        failed=f"{failed['reason']}: {cut(failed.get('message', ''), 500)}" if failed else "",
        stage=status.get("stage") or "",
        kind=artifact.get("kind", ""),
        digest=artifact.get("digest", ""),
        path=artifact.get("path", ""),
        base=(status.get("model") or {}).get("uri", ""),
        rank=int((method.get("lora") or {}).get("rank", 0)),
    )


def matches(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Whether all requirements of a selector hold, as Kubernetes reads it."""
    equal = all(labels.get(key) == value for key, value in selector.match_labels.items())
    return equal and all(_holds(requirement, labels) for requirement in selector.match_expressions)


def _holds(requirement: LabelRequirement, labels: Mapping[str, str]) -> bool:
    found = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return found in requirement.values
        case "NotIn":
            return found not in requirement.values
        case "Exists":
            return found is not None
        case "DoesNotExist":
            return found is None


def misfit(job: Candidate, need: Need) -> Misfit | None:
    """Why this job's artifact cannot be loaded here, before any server is asked."""
    if job.kind != "Adapter":
        return Misfit(reasons.WRONG_ARTIFACT, "published a whole model, not an adapter")
    return unfit(job.base, job.rank, need)


def unfit(base: str, rank: int, need: Need) -> Misfit | None:
    """Why an adapter of this base and rank does not fit; nothing is concluded from what is not known."""
    if words := base_misfit(base, need.base):
        return Misfit(reasons.WRONG_BASE, words)
    if rank > need.max_rank:
        words = f"has rank {rank}, and engine.lora.maxRank is {need.max_rank}: raise it to at least {rank}"
        return Misfit(reasons.ADAPTER_MISFIT, words)
    return None


def base_misfit(trained: str, served: str) -> str:
    """Why an adapter of one base does not fit another; nothing is concluded where either is unknown."""
    repository, _, commit = trained.partition("@")
    other, _, own = served.partition("@")
    if not trained or not served:
        return ""
    if repository != other:
        return f"was trained on {trained}, but this deployment serves {served}; an adapter fits its own base only"
    if commit and own and commit != own:
        pin = f"set model.revision: {commit}" if trained.startswith("hf://") else "serve the files it was trained on"
        return (
            f"was trained on {trained}, but this deployment serves {served}: other weights of the same name. Either "
            f"{pin}, or train it again"
        )
    return ""


@dataclass(frozen=True)
class Choice:
    """What a selector came to: the job to serve, if any, and the words on all that match."""

    job: Candidate | None
    message: str
    reason: str = ""  # why there is none
    stalled: bool = False


def choose(jobs: Sequence[Candidate], need: Need) -> Choice:
    """The newest job that is complete and fits."""
    newest_first = sorted(jobs, key=lambda job: job.age, reverse=True)
    fitting = [job for job in newest_first if job.complete and misfit(job, need) is None]
    if not fitting:
        return _none(newest_first, need)
    chosen = fitting[0]
    newer = [job for job in newest_first if job.age > chosen.age]
    words = [f"{_count(jobs)}; newest complete is {chosen.name}", *_passed_over(newer, need)]
    return Choice(chosen, "; ".join(words))


def passed(jobs: Sequence[Candidate], served: tuple[str, str], need: Need) -> str:
    """Why the newest job that has ended since the one served (its ``age``) is not served; empty where there is none."""
    ended = [job for job in jobs if (job.complete or job.failed) and job.age > served]
    return _reason(max(ended, key=lambda job: job.age), need) if ended else ""


def _reason(job: Candidate, need: Need) -> str:
    """Why a job that has ended is not served."""
    found = misfit(job, need) if job.complete else None
    return found.reason if found else reasons.FINETUNEJOB_FAILED


def _none(newest_first: Sequence[Candidate], need: Need) -> Choice:
    if not newest_first:
        return Choice(None, "no FineTuneJob of this namespace has these labels yet", reasons.WAITING_FOR_JOB)
    words = "; ".join([f"{_count(newest_first)}; none can be served", *_passed_over(newest_first, need)])
    if any(not job.complete and not job.failed for job in newest_first):
        return Choice(None, words, reasons.WAITING_FOR_JOB)
    return Choice(None, words, _reason(newest_first[0], need), stalled=True)


def _count(jobs: Sequence[Candidate]) -> str:
    return f"{len(jobs)} jobs match" if len(jobs) != 1 else "1 job matches"


def _passed_over(jobs: Sequence[Candidate], need: Need) -> list[str]:
    """Why each of the newest is not served; the rest as a number."""
    words = [f"{job.name} {cut(_why_not(job, need), WHY_LIMIT)}" for job in jobs[:TOLD]]
    return words + ([f"and {len(jobs) - TOLD} more"] if len(jobs) > TOLD else [])


def _why_not(job: Candidate, need: Need) -> str:
    if job.failed:
        return f"failed ({job.failed})"
    if not job.complete:
        return f"is not complete ({job.stage or 'not begun'})"
    found = misfit(job, need)
    return found.message if found else "fits"
