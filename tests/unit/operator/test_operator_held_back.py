"""A newer version of an adapter that is held back: the one before serves under every strategy, and it is told."""

from dataclasses import replace
from typing import Any

import pytest
from serving_facts import DIGEST, NOW, deployment, facts, server

from tuneloop_core.adapterconfig import AdapterFacts, AdapterFetchResult
from tuneloop_core.api.affinity import LabelSelector
from tuneloop_core.api.conditions import Condition
from tuneloop_core.api.modeldeployment import ModelDeployment
from tuneloop_core.api.modeldeployment_status import AdapterStatus
from tuneloop_core.api.rollout import RejectedVersion
from tuneloop_gateway.routes import parse_deployment
from tuneloop_operator.policy import adapters, reasons, versions
from tuneloop_operator.policy.adapterfetch import Fetched
from tuneloop_operator.policy.adapters import Resolved, Sources
from tuneloop_operator.policy.candidates import Candidate, Need
from tuneloop_operator.policy.course import Course
from tuneloop_operator.policy.serving import summarize
from tuneloop_operator.policy.verdicts import State, Verdict
from tuneloop_operator.policy.versions import Version

Obj = dict[str, Any]
BASE = "hf://acme/base@" + "c" * 40
NEED = Need(BASE, 32)
URI = {"adapters": [{"name": "bot", "from": {"uri": "hf://acme/bot"}}], "rollout": {"strategy": "Canary"}}


class NoJobs:
    def find(self, _name: str) -> Candidate | None:
        return None

    def matching(self, _selector: LabelSelector) -> list[Candidate]:
        return []


def fetched(letter: str, rank: int = 8, base: str = BASE) -> Fetched:
    facts_ = AdapterFacts(rank=rank, base=base)
    result = AdapterFetchResult(
        uri="hf://acme/bot@1", path=f"artifacts/{letter * 64}", digest=f"sha256:{letter * 64}", bytes=1, facts=facts_
    )
    return Fetched(Verdict(State.DONE, reasons.SUCCEEDED, ""), result)


def status(letter: str, **more: Any) -> Obj:
    fields = {"name": "bot", "digest": f"sha256:{letter * 64}", "path": f"artifacts/{letter * 64}", "state": "Ready"}
    return {**fields, "engineName": f"bot@{letter * 12}", "base": BASE, "rank": 8, "readyReplicas": 1, **more}


def resolve(new: Fetched, *known: Obj) -> Resolved:
    made = deployment(**URI)
    before = [AdapterStatus.model_validate(each) for each in known]
    return adapters.resolve(made.spec.adapters, before, Sources(NoJobs(), {"bot": new}), NEED)[0]


MISFITS = [
    pytest.param(
        fetched("b", rank=64), reasons.ADAPTER_MISFIT, "has rank 64, and engine.lora.maxRank is 32", id="rank"
    ),
    pytest.param(fetched("b", base="hf://acme/x"), reasons.WRONG_BASE, "was trained on hf://acme/x, but", id="base"),
]


@pytest.mark.parametrize(("new", "reason", "words"), MISFITS)
def test_a_canary_that_misfits_leaves_the_version_before(new: Fetched, reason: str, words: str) -> None:
    made, wanted = deployment({"adapters": [status("a")]}, **URI), resolve(new, status("a"))
    assert versions.adapter_pairs([wanted], made) == [], "it is no canary: it could never be loaded"
    (serves,) = versions.serving([wanted], made, None)
    assert serves.wire is not None
    assert (serves.wire.engine_name, serves.reason, serves.stalled) == ("bot@" + "a" * 12, reason, True)
    assert serves.message.startswith(f"adapter bot: hf://acme/bot {words}")
    assert serves.message.endswith("; still serving version " + "a" * 12)


@pytest.mark.parametrize(("new", "reason", "words"), MISFITS)
def test_a_first_version_that_misfits_says_so_by_name(new: Fetched, reason: str, words: str) -> None:
    wanted = resolve(new)
    assert (wanted.wire, wanted.reason, wanted.digest) == (None, reason, "sha256:" + "b" * 64)
    assert wanted.message.startswith(f"adapter bot: hf://acme/bot {words}")
    assert "still serving" not in wanted.message


@pytest.mark.parametrize(
    ("before", "pairs"),
    [
        pytest.param(status("a"), 1, id="it serves"),
        pytest.param(status("a", state="Failed"), 1, id="one of its pods could not load it"),
        pytest.param(status("a", state="Loading", readyReplicas=0), 1, id="asleep"),
        pytest.param(status("a", engineName="", state="Failed", rank=64, readyReplicas=0), 0, id="it misfitted"),
        pytest.param(status("a", state="Failed", readyReplicas=0), 0, id="no server could ever load it"),
    ],
)
def test_a_canary_is_compared_with_what_answered(before: Obj, pairs: int) -> None:
    made, wanted = deployment({"adapters": [before]}, **URI), resolve(fetched("b"), before)
    assert len(versions.adapter_pairs([wanted], made)) == pairs
    (serves,) = versions.serving([wanted], made, None)
    assert serves.digest == f"sha256:{('a' if pairs else 'b') * 64}"


NOWHERE = status("a", state="Failed", readyReplicas=0)  # its pod has started anew, and could not load it yet


def rejection(made: ModelDeployment, letter: str, **more: str) -> Obj:
    """Of this version of bot, as the status remembers it."""
    version = Version("Adapter", "bot", letter * 12, f"sha256:{letter * 64}")
    fields = {"kind": "Adapter", "name": "bot", "version": version.id, "key": version.key, "reason": "ErrorRate"}
    return {**fields, "spec": versions.spec_digest(made, version), "time": "2026-11-23T11:00:00Z", **more}


def rolling(phase: str, stable: str, canary: str, **more: Any) -> Obj:
    moment = "2026-11-23T11:59:00Z"
    fields = {"kind": "Adapter", "name": "bot", "phase": phase, "weight": 10, "started": moment, "since": moment}
    return {**fields, "stable": stable * 12, "canary": canary * 12, **more}


def test_what_was_rolled_back_gets_nothing_while_the_version_before_fails_to_load() -> None:
    made = deployment({"adapters": [NOWHERE], "rejected": [rejection(deployment(**URI), "b")]}, **URI)
    wanted = [resolve(fetched("b"), NOWHERE)]
    choice = versions.choose(made, versions.adapter_pairs(wanted, made))
    assert (choice.pair, [no.version for no in choice.refused]) == (None, ["b" * 12])
    (serves,) = versions.serving(wanted, made, None)
    assert serves.digest == "sha256:" + "a" * 64, "it stays listed, so that servers try it again"


@pytest.mark.parametrize(
    ("rollout", "rejected", "pairs"),
    [
        (rolling("Canary", "a", "b"), {}, 1),
        (rolling("RolledBack", "a", "b", reason="SpecSetBack"), {}, 0),
        (rolling("Promoted", "c", "a"), {}, 0),
        (rolling("Promoted", "a", "c"), {}, 0),
        (rolling("Canary", "a", "b", name="other"), {}, 0),
        (None, {"spec": "as it was asked for before"}, 1),
        (None, {"name": "other"}, 0),
        (None, {"kind": "Revision"}, 0),
    ],
    ids=[
        "beside its canary",
        "nothing is held against what was withdrawn",
        "it was promoted, and cannot be loaded any more",
        "another was promoted in its place",
        "another adapter's rollout",
        "rolled back, and tried again",
        "another adapter's",
        "a revision's",
    ],
)
def test_a_version_that_others_were_measured_against_stays_what_serves(
    rollout: Obj | None, rejected: dict[str, str], pairs: int
) -> None:
    memory = [rejection(deployment(**URI), "b", **rejected)] if rejected else []
    made = deployment({"adapters": [NOWHERE], "rollout": rollout, "rejected": memory}, **URI)
    wanted = [resolve(fetched("b"), NOWHERE)]
    found = versions.choose(made, versions.adapter_pairs(wanted, made))
    assert (1 if found.pair else 0, found.refused) == (pairs, ())
    (serves,) = versions.serving(wanted, made, None)
    assert serves.digest == f"sha256:{('a' if pairs else 'b') * 64}"


# ---- what is told ----

HELD = Resolved("bot", DIGEST, "artifacts/x", reasons.ADAPTER_MISFIT, "hf://acme/bot has rank 64", stalled=True)
FAILED = replace(HELD, reason=reasons.ADAPTER_FAILED, message="adapter bot: version b did not load", next="bot@b")
WAITS = replace(HELD, reason=reasons.WAITING_FOR_JOB, message="waiting for FineTuneJob two", stalled=False)
PASSED = Resolved("bot", DIGEST, "x", message="2 jobs match; x has rank 64", passed=reasons.ADAPTER_MISFIT)
NO = RejectedVersion(
    kind="Adapter", name="bot", version="b", key="b", spec="s", reason="ErrorRate", message="b was rolled back",
    time="2026-11-23T12:00:00Z",
)  # fmt: skip
REVISION = NO.model_copy(update={"kind": "Revision", "name": "chat"})
SERVES = Resolved("bot", DIGEST, "x")
REFUSED = Course(refused=[NO])
LOADED = "1 of 1 adapters are loaded"


def condition(found: list[Condition], kind: str) -> Condition:
    return next(each for each in found if each.type == kind)


@pytest.mark.parametrize(
    ("resolved", "course", "reason", "message"),
    [
        (Resolved("bot", DIGEST, "artifacts/x"), Course(), "Ready", LOADED),
        (HELD, Course(), "AdapterMisfit", f"{LOADED}; adapter bot: hf://acme/bot has rank 64"),
        (FAILED, Course(), "AdapterFailed", f"{LOADED}; adapter bot: version b did not load"),
        (WAITS, Course(), "WaitingForFineTuneJob", f"{LOADED}; adapter bot: waiting for FineTuneJob two"),
        (PASSED, Course(), "AdapterMisfit", f"{LOADED}; adapter bot: 2 jobs match; x has rank 64"),
        (SERVES, REFUSED, "RolledBack", f"{LOADED}; adapter bot: b was rolled back"),
        (SERVES, Course(refused=[REVISION]), "Ready", LOADED),
    ],
    ids=["nothing", "misfits", "did not load", "waits", "passed over", "rolled back", "a revision is another matter"],
)
def test_loaded_and_yet_not_the_newest(resolved: Resolved, course: Course, reason: str, message: str) -> None:
    made = deployment()
    told = summarize(made, facts(resolved=[resolved], course=course))
    found = condition(told.conditions, "AdaptersReady")
    assert (found.status, found.reason, found.message) == ("True", reason, message)
    assert told.models[1].ready, "the one before answers"
    assert parse_deployment(made.to_dict() | {"status": told.to_dict()}).stalled == "", "requests are held"


def test_what_waits_for_a_revision_that_was_rolled_back_waits_for_nothing() -> None:
    waits = Resolved(
        "wide", DIGEST, "x", reason="RollingOut", message="it is served when the new revision is", refused=True
    )
    both = [SERVES, waits]
    alone = summarize(deployment(), facts(resolved=both)).conditions
    assert [(each.type, each.reason) for each in alone if each.type in ("Reconciling", "Stalled")] == [
        ("Reconciling", "RollingOut")
    ]
    told = summarize(deployment(), facts(resolved=both, course=Course(refused=[REVISION]))).conditions
    assert [(each.type, each.reason) for each in told if each.type in ("Reconciling", "Stalled")] == [
        ("Stalled", "RolledBack")
    ]
    assert condition(told, "AdaptersReady").message.endswith("adapter wide: it is served when the new revision is")


def test_one_that_is_not_loaded_is_no_less_told() -> None:
    found = condition(
        summarize(deployment(), facts(servers={"10.0.0.1": server("Failed", "rank")})).conditions, "Stalled"
    )
    assert (found.reason, found.message) == (reasons.ADAPTER_FAILED, "adapter bot: rank")


@pytest.mark.parametrize(
    ("resolved", "course", "words"),
    [
        (SERVES, Course(), ""),
        (SERVES, REFUSED, "; adapter bot: b was rolled back"),
        (PASSED, Course(), "; adapter bot: 2 jobs match; x has rank 64"),
    ],
    ids=["nothing", "rolled back", "passed over"],
)
def test_asleep_the_one_before_is_loaded_on_waking(resolved: Resolved, course: Course, words: str) -> None:
    """Sleep takes nothing away that a request does not bring back: a newer one that is held back is told, as awake."""
    told = summarize(deployment(), facts(resolved=[resolved], course=course, replicas=0, pods=[]))
    found = condition(told.conditions, "AdaptersReady")
    assert (found.status, found.reason) == ("True", "ScaledToZero")
    assert found.message == f"asleep: adapters are loaded on waking{words}"


def test_what_is_held_back_is_not_why_the_one_before_is_not_loaded_yet() -> None:
    for resolved, course in ((PASSED, Course()), (SERVES, REFUSED)):
        told = summarize(deployment(), facts(resolved=[resolved], course=course, servers={}))
        found = condition(told.conditions, "AdaptersReady")
        assert (found.status, found.reason) == ("False", "AdaptersLoading")
        assert found.message == "0 of 1 adapters are loaded; loading bot"


def test_one_that_is_passed_over_is_no_reason_for_anything() -> None:
    ready = summarize(deployment(), facts(resolved=[PASSED])).conditions
    assert (condition(ready, "Ready").reason, [each.type for each in ready if each.type == "Stalled"]) == ("Ready", [])


DENIED = Verdict(State.STALLED, reasons.FINETUNEJOB_FAILED, "FineTuneJob base failed")


@pytest.mark.parametrize(
    "resolved",
    [replace(PASSED, passed=DENIED.reason), replace(HELD, reason=DENIED.reason)],
    ids=["passed over", "its job failed"],
)
@pytest.mark.parametrize("replicas", [1, 0], ids=["none answers", "asleep"])
def test_a_model_that_stalls_for_the_reason_of_an_adapter_is_no_less_told(resolved: Resolved, replicas: int) -> None:
    """Requests are not held for a model that cannot come, whatever the adapters say."""
    made = deployment()
    none = facts(model=DENIED, resolved=[resolved], revisions=[], judged=None, pods=[], replicas=replicas)
    told = summarize(made, none)
    assert parse_deployment(made.to_dict() | {"status": told.to_dict()}).stalled == (
        "FineTuneJobFailed: FineTuneJob base failed"
    )


def test_it_is_dated_by_what_serves() -> None:
    told = summarize(
        deployment({"adapters": [status("d", since="2026-11-20T00:00:00Z")]}), facts(resolved=[HELD], now=NOW)
    )
    assert (told.adapters[0].since, told.adapters[0].digest) == ("2026-11-20T00:00:00Z", DIGEST)
