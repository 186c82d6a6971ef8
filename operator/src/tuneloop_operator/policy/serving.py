"""The status of a ModelDeployment: what is served, whether it is what was asked for, and if not, why in words. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from tuneloop_core.api.finetunejob_status import ModelStatus
from tuneloop_core.api.modeldeployment import ModelDeployment
from tuneloop_core.api.modeldeployment_status import (
    AdapterStatus,
    LatencyStatus,
    ModelDeploymentStatus,
    RevisionStatus,
    ServedName,
)
from tuneloop_core.constants import LABEL_REVISION
from tuneloop_core.serving import ServerStatus
from tuneloop_operator.policy import adapters as adapter_policy
from tuneloop_operator.policy import conditions, drains, reasons
from tuneloop_operator.policy.adapters import Resolved
from tuneloop_operator.policy.coldstart import cold_start
from tuneloop_operator.policy.conditions import Wanted
from tuneloop_operator.policy.course import ROLLED_BACK, Course, condition_of, with_canary
from tuneloop_operator.policy.pods import Trouble, condition, find_trouble, quota_words, refusal_words
from tuneloop_operator.policy.revisions import number_of
from tuneloop_operator.policy.scalingstatus import scaling_status
from tuneloop_operator.policy.schedules import problems
from tuneloop_operator.policy.succession import NO_ROOM, OFFER
from tuneloop_operator.policy.verdicts import State, Verdict

Obj = dict[str, Any]

REVISIONS_KEPT = 10
ASLEEP = "asleep: wakes on the first request"
ADAPTERS_ASLEEP = "asleep: adapters are loaded on waking"
NO_KEY = "; no key opens it: set spec.access.keys (python -m tuneloop_gateway.keys new prints a key and its line)"


@dataclass(frozen=True)
class ServingFacts:
    """What the cluster knows of one ModelDeployment."""

    now: datetime
    model: Verdict
    model_status: ModelStatus | None
    resolved: Sequence[Resolved] = ()
    revisions: Sequence[RevisionStatus] = ()  # newest first
    judged: Obj | None = None  # the Deployment of the revision that must be ready
    pods: Sequence[Obj] = ()
    events: Sequence[Obj] = ()
    servers: Mapping[str, ServerStatus] = field(default_factory=dict)  # by address
    latency: LatencyStatus | None = None
    trouble: Verdict | None = None
    closed: bool = False  # it has no key, and the chart opens nothing without one
    name_taken: str = ""  # words, where the base's name belongs to another ModelDeployment
    course: Course = field(default_factory=Course)
    replicas: int = 0  # wanted
    replicas_reason: str = ""
    url: str = ""
    selector: str = ""


def summarize(deployment: ModelDeployment, facts: ServingFacts) -> ModelDeploymentStatus:
    """The whole status."""
    generation, old = deployment.metadata.generation, deployment.status
    ready_ips = ready_addresses(facts.pods)
    servers = {ip: facts.servers[ip] for ip in ready_ips if ip in facts.servers}
    mine = [pod["status"]["podIP"] for pod in facts.pods if is_pod_ready(pod) and _serves_these(pod, facts.course)]
    asked = {ip: servers[ip] for ip in mine if ip in servers}
    adapters = adapter_policy.statuses(facts.resolved, asked, len(mine))
    adapters = adapter_policy.dated(adapters, old.adapters, facts.now)
    verdict = judge(facts, adapters, problems(deployment.spec.scaling.schedules))
    wanted = _conditions(facts, verdict, adapters, deployment.spec.engine.lora.max_cached)
    wanted += condition_of(facts.course, calm=verdict.state is State.DONE)
    answers = bool(ready_ips) and not facts.name_taken
    fields: dict[str, Any] = {
        "observed_generation": generation,
        "conditions": conditions.merge(old.conditions, wanted, generation, facts.now),
        "url": facts.url,
        "replicas": len([pod for pod in facts.pods if _is_alive(pod)]),
        "ready_replicas": len(ready_ips),
        "selector": facts.selector,
        "model": facts.model_status or old.model,
        "models": with_canary(_served(deployment, adapters, servers, answers=answers), facts.course),
        "adapters": adapters,
        "revisions": list(facts.revisions)[:REVISIONS_KEPT],
        "latency": facts.latency or old.latency,
        "scaling": scaling_status(old.scaling, facts.replicas, facts.replicas_reason, facts.now),
        "cold_start": cold_start(old.cold_start, facts.pods, facts.servers),
        "rollout": facts.course.status,
        "rejected": list(facts.course.rejected),
    }
    return old.model_copy(update=fields)


def judge(facts: ServingFacts, adapters: Sequence[AdapterStatus], wrong: Sequence[str] = ()) -> Verdict:
    """The one thing to say about it: the first of these that is not right."""
    if facts.trouble is not None:
        return facts.trouble
    if facts.model.state is not State.DONE:
        return facts.model
    found = _pods_verdict(facts) or _name_verdict(facts) or _adapters_judged(facts, adapters)
    return found or _spec_verdict(facts, wrong) or _ready_verdict(facts)


def _pods_verdict(facts: ServingFacts) -> Verdict | None:
    known = {number_of(each): each for each in facts.revisions}
    judged = known.get(facts.course.judged(known) or 0)
    if judged is None or judged.ready or facts.replicas == 0:
        return None
    others = [each for each in facts.revisions if each.name != judged.name and each.replicas]
    found = _refusal(facts.judged) or _trouble_verdict(facts, judged, others)
    if found is not None:
        room = _room_words(facts, others, found.reason) if found.reason in NO_ROOM else ""
        return replace(found, message=f"{found.message}; {room}") if room else found
    words = f"{judged.name}: {judged.ready_replicas} of {facts.replicas} replicas answer; the engine loads the model"
    return Verdict(State.PENDING, reasons.ROLLING_OUT, words)


def _room_words(facts: ServingFacts, others: Sequence[RevisionStatus], reason: str) -> str:
    """Who has the room that is missing, where it is a pod of this deployment, and what to do."""
    if others and not facts.course.serving:
        return OFFER
    leaving = drains.leaving(facts.pods)
    return drains.words(leaving, reason) if leaving else ""


def _trouble_verdict(facts: ServingFacts, judged: RevisionStatus, others: Sequence[RevisionStatus]) -> Verdict | None:
    """A server that ends again and again needs a person: the engine refuses the model, or it does not fit.

    While another revision only starts, waking, requests are worth holding for it: nothing is stalled before it answers.
    """
    trouble = _trouble_of(facts, judged)
    if trouble is None:
        return None
    serving = next((each.name for each in others if each.ready_replicas), "")
    starting = [] if serving or facts.course.serving else others  # a canary's start is not waited for
    coming = next((each.name for each in starting if not _ends(_trouble_of(facts, each))), "")
    words = f". {serving} serves meanwhile" if serving else f". {coming} starts meanwhile" if coming else ""
    state = State.STALLED if _ends(trouble) and not coming else State.PENDING
    return Verdict(state, trouble.reason, f"{judged.name}: {trouble.message}{words}", look_again=30.0)


def _trouble_of(facts: ServingFacts, revision: RevisionStatus) -> Trouble | None:
    own = [pod for pod in facts.pods if pod["metadata"]["labels"].get(LABEL_REVISION) == revision.name]
    return find_trouble(own, facts.events)


def _ends(trouble: Trouble | None) -> bool:
    return trouble is not None and trouble.reason in (reasons.CRASHING, reasons.OOM_KILLED)


def _refusal(deployment: Obj | None) -> Verdict | None:
    """A quota or admission refused the pods: the Deployment itself says so."""
    found = condition(deployment, "ReplicaFailure") if deployment else None
    if found is None or found.get("status") != "True":
        return None
    message = found.get("message", "")
    if "exceeded quota" in message:
        return Verdict(State.PENDING, reasons.QUOTA_EXCEEDED, quota_words(message), look_again=60.0)
    return Verdict(
        State.PENDING, reasons.POD_REFUSED, f"the cluster refused the pod: {refusal_words(message)}", look_again=60.0
    )


def _name_verdict(facts: ServingFacts) -> Verdict | None:
    """The base's name belongs to another; with it all that is said of adapters whose names do."""
    if not facts.name_taken:
        return None
    words = [facts.name_taken, *(item.message for item in facts.resolved if item.reason == reasons.NAME_TAKEN)]
    return Verdict(State.STALLED, reasons.NAME_TAKEN, "; ".join(words))


def _adapters_judged(facts: ServingFacts, adapters: Sequence[AdapterStatus]) -> Verdict | None:
    """What adapters wait for; not a revision that was rolled back: that does not come by waiting, and is told."""
    found = _adapters_verdict(facts, adapters)
    gone = any(no.kind == "Revision" for no in facts.course.refused)
    return None if found and gone and found.reason == reasons.ROLLING_OUT else found


def _adapters_verdict(facts: ServingFacts, adapters: Sequence[AdapterStatus]) -> Verdict | None:
    stalled = [item for item in facts.resolved if item.stalled]
    if stalled:
        return Verdict(State.STALLED, stalled[0].reason, "; ".join(map(_about, stalled)))
    broken = [item for item in adapters if item.state == "Failed"]
    if broken:
        words = "; ".join(f"adapter {item.name}: {item.message}" for item in broken)
        return Verdict(State.STALLED, reasons.ADAPTER_FAILED, words)
    waiting = [item for item in facts.resolved if item.reason]
    if waiting:
        return Verdict(State.PENDING, waiting[0].reason, "; ".join(map(_about, waiting)))
    loading = [item.name for item in adapters if item.state == "Loading"]
    if loading and facts.replicas:
        return Verdict(State.PENDING, reasons.ADAPTERS_LOADING, f"loading {', '.join(loading)}", look_again=10.0)
    return None


def _about(item: Resolved) -> str:
    """Its words, with its name."""
    return item.message if item.message.startswith("adapter ") else f"adapter {item.name}: {item.message}"


def _spec_verdict(facts: ServingFacts, wrong: Sequence[str]) -> Verdict | None:
    """What the API server cannot check, and is left out meanwhile. Asleep it stalls nothing: requests are held."""
    if not wrong:
        return None
    if facts.replicas == 0:
        return Verdict(State.DONE, reasons.SCALED_TO_ZERO, f"{ASLEEP}{_door(facts)}; {'; '.join(wrong)}")
    return Verdict(State.STALLED, reasons.INVALID_SPEC, "; ".join(wrong))


def _ready_verdict(facts: ServingFacts) -> Verdict:
    if facts.replicas == 0:
        return Verdict(State.DONE, reasons.SCALED_TO_ZERO, f"{ASLEEP}{_door(facts)}")
    who = "1 replica answers" if facts.replicas == 1 else f"{facts.replicas} replicas answer"
    return Verdict(State.DONE, reasons.READY, f"{who} at {facts.url}{_door(facts)}")


def _door(facts: ServingFacts) -> str:
    """What whoever reads Ready must know: the model answers, and the gateway lets nobody in."""
    return NO_KEY if facts.closed else ""


def _conditions(
    facts: ServingFacts, verdict: Verdict, adapters: Sequence[AdapterStatus], max_cached: int
) -> list[Wanted]:
    found = [Wanted(conditions.READY, verdict.state is State.DONE, verdict.reason, verdict.message)]
    if verdict.state in (State.PENDING, State.RUNNING):
        found.append(Wanted(conditions.RECONCILING, True, verdict.reason, verdict.message))
    if verdict.state in (State.STALLED, State.FAILED):
        found.append(Wanted(conditions.STALLED, True, verdict.reason, verdict.message))
    model = facts.model
    found.append(Wanted("ModelFetched", model.state is State.DONE, model.reason, model.message))
    if adapters:
        found.append(_adapters_condition(facts, adapters, max_cached))
    return found


def _adapters_condition(facts: ServingFacts, adapters: Sequence[AdapterStatus], max_cached: int) -> Wanted:
    """How many are loaded, and why the others are not, also while the pods themselves are what is waited for."""
    count = sum(item.state == "Ready" for item in adapters)
    words = _loaded_words(count, len(adapters), max_cached)
    verdict = _adapters_verdict(facts, adapters)
    held = verdict or _held_back(facts)  # it takes nothing away from what is loaded, and is told
    if count == len(adapters):
        return Wanted("AdaptersReady", True, held.reason if held else reasons.READY, _with(words, held))
    if verdict is None and facts.replicas == 0:
        return Wanted("AdaptersReady", True, reasons.SCALED_TO_ZERO, _with(ADAPTERS_ASLEEP, held))
    reason = verdict.reason if verdict else reasons.ADAPTERS_LOADING
    return Wanted("AdaptersReady", False, reason, _with(words, verdict))


def _loaded_words(count: int, among: int, max_cached: int) -> str:
    words = f"{count} of {among} adapters are loaded"
    if count <= max_cached:
        return words
    return (
        f"{words}; a server holds {max_cached} (engine.lora.maxCached), the others are parked and come back on request"
    )


def _with(words: str, more: Verdict | None) -> str:
    return f"{words}; {more.message}" if more else words


def _held_back(facts: ServingFacts) -> Verdict | None:
    """Newer versions that are not served, while the ones before them are as they should be."""
    return _rolled_back(facts.course) or _passed_over(facts)


def _rolled_back(course: Course) -> Verdict | None:
    """Versions of adapters that are still wanted, and were rolled back."""
    refused = [f"adapter {no.name}: {no.message}" for no in course.refused if no.kind == "Adapter"]
    return Verdict(State.STALLED, ROLLED_BACK, "; ".join(refused)) if refused else None


def _passed_over(facts: ServingFacts) -> Verdict | None:
    """Newer jobs that a selector found and that cannot be served: nothing is wrong with what is."""
    passed = [item for item in facts.resolved if item.passed]
    return Verdict(State.DONE, passed[0].passed, "; ".join(map(_about, passed))) if passed else None


def _served(
    deployment: ModelDeployment,
    adapters: Sequence[AdapterStatus],
    servers: Mapping[str, ServerStatus],
    *,
    answers: bool,
) -> list[ServedName]:
    name = deployment.metadata.name
    base = ServedName(name=name, engine_name=name, kind="Base", ready=answers)
    loaded = {state.engine_name for server in servers.values() for state in server.adapters if state.answers}
    return [
        base,
        *(
            ServedName(name=item.name, engine_name=item.engine_name, kind="Adapter", ready=_answers(item, loaded))
            for item in adapters
        ),
    ]


def _answers(item: AdapterStatus, loaded: set[str]) -> bool:
    return item.engine_name in loaded and item.reason != reasons.NAME_TAKEN


def is_pod_ready(pod: Obj) -> bool:
    """Whether the pod takes traffic."""
    found = condition(pod, "Ready")
    return found is not None and found.get("status") == "True" and not pod["metadata"].get("deletionTimestamp")


def ready_addresses(pods: Sequence[Obj]) -> list[str]:
    """Of the pods that take traffic, of all revisions."""
    return [pod["status"]["podIP"] for pod in pods if is_pod_ready(pod) and pod["status"].get("podIP")]


def ready_beside(pods: Sequence[Obj], serving: str) -> int:
    """Pods that take traffic beside the revision whose size is decided: a canary is a share of that, not more of it.

    It is ``serving`` (rN); where none is said to serve, each is sized as if it were alone: the one with the most is it.
    """
    found = Counter((pod["metadata"].get("labels") or {}).get(LABEL_REVISION, "") for pod in pods if is_pod_ready(pod))
    return found.total() - (found[serving] if serving else max(found.values(), default=0))


def _serves_these(pod: Obj, course: Course) -> bool:
    """Whether the adapters of the status are this pod's: those of a base that only arrives are others."""
    label = (pod["metadata"].get("labels") or {}).get(LABEL_REVISION)
    return bool(pod["status"].get("podIP")) and (course.arriving is None or label != course.arriving.revision)


def _is_alive(pod: Obj) -> bool:
    return pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")
