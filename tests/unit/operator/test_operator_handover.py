"""A new version of an adapter without a canary: which version serves and what is loaded, each case by a table."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tuneloop_core.api.modeldeployment import ModelDeployment
from tuneloop_core.api.modeldeployment_status import AdapterStatus
from tuneloop_core.serving import AdapterList, AdapterState, ServerStatus
from tuneloop_operator.policy import handover, reasons
from tuneloop_operator.policy.adapters import Resolved, dated, wanted_list
from tuneloop_operator.policy.candidates import Need
from tuneloop_operator.policy.handover import Told
from tuneloop_operator.policy.serving import ServingFacts, summarize
from tuneloop_operator.policy.verdicts import State, Verdict

NOW = datetime(2026, 11, 29, 12, 0, 0, tzinfo=UTC)
BASE, OTHER = "hf://org/model@" + "1" * 40, "hf://org/model@" + "2" * 40
NEED = Need(BASE, 32)
A, B, C = (letter * 12 for letter in "abc")
OOM = "CUDA out of memory"


def version(letter: str, name: str = "bot", **more: Any) -> Resolved:
    fields = {"digest": f"sha256:{letter * 64}", "path": f"artifacts/{letter * 64}", "base": BASE, "rank": 8}
    return Resolved(name, **{**fields, **more})


def status(letter: str, name: str = "bot", **more: Any) -> AdapterStatus:
    fields = {"digest": f"sha256:{letter * 64}", "path": f"artifacts/{letter * 64}", "base": BASE, "rank": 8}
    engine_name = f"{name}@{letter * 12}"
    return AdapterStatus(**{"name": name, "engine_name": engine_name, "state": "Ready", **fields, **more})


def pod(**states: str) -> ServerStatus:
    """A server by its versions of bot: ``pod(a="Loaded", b="Failed")``."""
    found = [
        AdapterState(engine_name=f"bot@{letter * 12}", state=state, message=OOM if state == "Failed" else "")  # type: ignore[arg-type]
        for letter, state in states.items()
    ]
    return ServerStatus(ready=True, draining=False, model="m", adapters=found)


BOTH, ALONE, BAD = pod(a="Loaded", b="Loaded"), pod(a="Loaded"), pod(a="Loaded", b="Failed")
FAILED = {"next_engine_name": f"bot@{B}", "reason": "AdapterFailed", "message": "it did not load"}


@pytest.mark.parametrize(
    ("before", "told", "serves", "reason"),
    [
        pytest.param({}, Told([ALONE]), "a", "AdaptersLoading", id="not heard of yet"),
        pytest.param({}, Told([pod(a="Loaded", b="Loading")]), "a", "AdaptersLoading", id="on its way"),
        pytest.param({}, Told([BOTH, pod(a="Loaded", b="Loading")]), "a", "AdaptersLoading", id="in one of two pods"),
        pytest.param({}, Told([BOTH, BAD]), "a", "AdapterFailed", id="one of two pods could not load it"),
        pytest.param({}, Told([BOTH, None]), "a", "AdaptersLoading", id="a pod has not told"),
        pytest.param({}, Told([None]), "a", "AdaptersLoading", id="the operator has just started"),
        pytest.param({}, Told([BOTH, BOTH]), "b", "", id="in every ready pod"),
        pytest.param({}, Told([BOTH], [ALONE]), "b", "", id="a pod that is not ready counts for nothing"),
        pytest.param({}, Told([pod(a="Loaded", b="Parked")]), "b", "", id="parked is answered too"),
        pytest.param({}, Told([pod(a="Parked", b="Loading")]), "a", "AdaptersLoading", id="the old one is parked"),
        pytest.param({}, Told(), "b", "", id="scaled to zero"),
        pytest.param({}, Told([], [ALONE]), "a", "AdaptersLoading", id="the only pod is not ready for a moment"),
        pytest.param({}, Told([], [pod(a="Loading")]), "b", "", id="pods that never answered"),
        pytest.param({}, Told([pod(a="Failed", b="Loading")]), "b", "", id="the old one is nowhere"),
        pytest.param(FAILED, Told(), "a", "AdapterFailed", id="did not load, then scaled to zero"),
        pytest.param(FAILED, Told([None]), "a", "AdapterFailed", id="did not load, then the operator restarts"),
        pytest.param(FAILED, Told([pod(b="Failed")]), "a", "AdapterFailed", id="did not load, the old one comes back"),
        pytest.param(FAILED, Told([pod(a="Loaded", b="Loading")]), "a", "AdaptersLoading", id="is tried again"),
        pytest.param(FAILED, Told([BOTH]), "b", "", id="loads at last"),
        pytest.param(
            FAILED | {"next_engine_name": f"bot@{C}"}, Told(), "b", "", id="another did not load, this one is new"
        ),
        pytest.param({"engine_name": ""}, Told([ALONE]), "b", "", id="the old one was never listed"),
        pytest.param({"base": OTHER}, Told([ALONE]), "b", "", id="the old one is of another base"),
        pytest.param({"rank": 64}, Told([ALONE]), "b", "", id="the old one fits no more"),
    ],
)  # fmt: skip
def test_which_version_serves(before: dict[str, str], told: Told, serves: str, reason: str) -> None:
    (found,) = handover.serving([version("b")], [status("a", **before)], told, NEED)
    assert (found.digest, found.path, found.reason) == (f"sha256:{serves * 64}", f"artifacts/{serves * 64}", reason)
    assert (found.next, found.stalled) == ("" if serves == "b" else f"bot@{B}", reason == "AdapterFailed")


@pytest.mark.parametrize(
    ("item", "serves"),
    [(version("a"), A), (Resolved("bot", reason="WaitingForFineTuneJob"), ""), (version("a", refused=True), "")],
    ids=["the same version", "what is known fits no more", "the same version fits no more"],
)
def test_without_another_version_all_is_as_it_is_wanted(item: Resolved, serves: str) -> None:
    (found,) = handover.serving([item], [status("a")], Told([ALONE]), NEED)
    assert (found, found.wire.engine_name if found.wire else "") == (item, f"bot@{serves}" if serves else "")


def test_a_first_version_is_listed_at_once() -> None:
    assert handover.serving([version("a")], [], Told([pod()]), NEED) == [version("a")]


def test_the_words() -> None:
    loading, failed = (
        handover.serving([version("b", message="2 jobs match")], [status("a")], told, NEED)[0].message
        for told in (Told([BOTH, ALONE]), Told([BAD]))
    )
    assert loading == (
        f"adapter bot: version {B} is loaded beside {A}, which serves: 1 of 2 ready pods have it; 2 jobs match"
    )
    assert failed == (
        f"adapter bot: version {B} did not load: {OOM}; still serving version {A}. It takes over by itself once every "
        "ready pod has it; else name another version in spec.adapters"
    )


def test_any_number_at_once_each_by_itself() -> None:
    wanted = [version("b", "one"), version("b", "two"), version("b", "three")]
    states = [
        AdapterState(engine_name=f"{name}@{letter * 12}", state="Loaded")
        for name, letter in (("one", "a"), ("one", "b"), ("two", "a"), ("three", "a"))
    ]
    told = Told([ServerStatus(ready=True, draining=False, model="m", adapters=states)])
    found = handover.serving(wanted, [status("a", name) for name in ("one", "two", "three")], told, NEED)
    assert [item.digest[7] for item in found] == ["b", "a", "a"]


def test_asleep_with_a_version_that_did_not_load_requests_are_still_held() -> None:
    """The gateways hold them where ``AdaptersReady`` is False for the reason of ``Stalled``: a replica can come."""
    known = status("a", **FAILED)
    serve = handover.serving([version("b")], [known], Told(), NEED)
    spec = {"model": {"uri": "hf://org/model"}, "adapters": [{"name": "bot", "from": {"fineTuneJob": "bad"}}]}
    metadata = {"name": "chat", "namespace": "team", "uid": "u", "generation": 1}
    deployment = ModelDeployment.model_validate({"metadata": metadata, "spec": spec})
    done = Verdict(State.DONE, reasons.SUCCEEDED, "there")
    told = summarize(deployment, ServingFacts(now=NOW, model=done, model_status=None, resolved=serve))
    found = {each.type: (each.status, each.reason) for each in told.conditions}
    assert (found["Stalled"], found["AdaptersReady"]) == (("True", "AdapterFailed"), ("False", "AdapterFailed"))
    assert (told.adapters[0].next_engine_name, told.models[1].engine_name) == (f"bot@{B}", f"bot@{A}")


def engine_names(found: AdapterList) -> list[str]:
    return [each.engine_name for each in found.adapters]


THERE = wanted_list([version("a"), version("b")])


@pytest.mark.parametrize(
    ("serve", "wanted", "before", "names", "lingers"),
    [
        pytest.param("a", "b", status("a"), [A, B], False, id="both while the new one loads"),
        pytest.param("b", "b", status("a"), [B, A], True, id="it takes over: the old one stays a while"),
        pytest.param("b", "b", status("b", since="2026-11-29T11:59:46Z"), [B, A], True, id="14 s later"),
        pytest.param("b", "b", status("b", since="2026-11-29T11:59:45Z"), [B], False, id="15 s later"),
        pytest.param("b", "b", status("b"), [B], False, id="of an operator that kept no times"),
        pytest.param("b", "b", status("a", base=OTHER), [B], False, id="it came with its base"),
        pytest.param("c", "c", status("b", since="2026-11-29T11:59:46Z"), [C, A, B], True, id="two in a row"),
    ],
)
def test_what_is_loaded(serve: str, wanted: str, before: AdapterStatus, names: list[str], *, lingers: bool) -> None:
    found, again = handover.listed([version(serve)], [version(wanted)], [before], THERE, NOW)
    assert (engine_names(found), again) == ([f"bot@{name}" for name in names], lingers)


@pytest.mark.parametrize("left", [[], [replace(version("b"), refused=True)]], ids=["removed", "fits no more"])
def test_what_is_not_served_does_not_stay_a_while(left: list[Resolved]) -> None:
    known = [status("b", since="2026-11-29T11:59:59Z")]
    assert handover.listed(left, left, known, THERE, NOW) == (AdapterList(), False)


@pytest.mark.parametrize(
    ("found", "known", "since"),
    [
        ([status("a")], [], "2026-11-29T12:00:00Z"),
        ([status("a")], [status("a", since="2026-11-29T10:00:00Z")], "2026-11-29T10:00:00Z"),
        ([status("b")], [status("a", since="2026-11-29T10:00:00Z")], "2026-11-29T12:00:00Z"),
        ([AdapterStatus(name="bot", state="Waiting")], [status("a")], None),
    ],
    ids=["the first", "the same", "another takes over", "none"],
)
def test_since_when_a_version_serves(found: list[AdapterStatus], known: list[AdapterStatus], since: str | None) -> None:
    assert dated(found, known, NOW)[0].since == since
