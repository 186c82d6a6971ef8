"""Which version a label selector comes to, and what is said of the jobs that were passed over."""

from typing import Any

import pytest

from tuneloop_core.api.affinity import LabelSelector
from tuneloop_core.api.modeldeployment import AdapterSpec
from tuneloop_core.api.modeldeployment_status import AdapterStatus
from tuneloop_operator.names import Key
from tuneloop_operator.policy import adapters, candidates, reasons
from tuneloop_operator.policy.adapters import Resolved, Sources
from tuneloop_operator.policy.candidates import Candidate, Need
from tuneloop_operator.reconcile.adapterjobs import ReadJobs
from tuneloop_operator.reconcile.cache import Cache

BASE = "hf://o/m@abc"
SPEC = AdapterSpec.model_validate({"name": "bot", "from": {"selector": {"matchLabels": {"app": "support"}}}})


def hexed(digit: str) -> str:
    return f"sha256:{digit * 64}"


def done(name: str, day: int, digit: str = "a", **more: Any) -> Candidate:
    fields: dict[str, Any] = {"kind": "Adapter", "digest": hexed(digit), "path": f"artifacts/{digit * 64}"}
    fields |= {"base": BASE, "rank": 16, "complete": True, "stage": "Succeeded"}
    return Candidate(name, f"2026-11-{day:02}T00:00:00Z", **fields | more)


def undone(name: str, day: int, **more: Any) -> Candidate:
    return Candidate(name, f"2026-11-{day:02}T00:00:00Z", stage="Training", base=BASE, **more)


class Jobs:
    def __init__(self, *jobs: Candidate) -> None:
        self._jobs = jobs

    def find(self, _name: str) -> None:
        return None

    def matching(self, _selector: LabelSelector) -> tuple[Candidate, ...]:
        return self._jobs


def resolve(*jobs: Candidate, known: AdapterStatus | None = None) -> Resolved:
    return adapters.resolve([SPEC], [known] if known else [], Sources(Jobs(*jobs)), Need(BASE, 32))[0]


def status_of(resolved: Resolved) -> AdapterStatus:
    return adapters.statuses([resolved], {}, 0)[0]


FAILED = undone("y", 4, failed="GateFailed: evalLoss 2.1 is above 1.9")
WAITING, STALLED = (reasons.WAITING_FOR_JOB, False), (reasons.FINETUNEJOB_FAILED, True)

TABLE: list[tuple[str, list[Candidate], str, tuple[str, bool], str]] = [
    ("none", [], "", WAITING, "no FineTuneJob of this namespace has these labels yet"),
    ("one", [done("x", 1)], "x", ("", False), "1 job matches; newest complete is x"),
    ("newest", [done("old", 1), done("x", 3), done("mid", 2)], "x", ("", False), "3 jobs match; newest complete is x"),
    ("same second, by name", [done("x", 1), done("w", 1)], "x", ("", False), "2 jobs match; newest complete is x"),
    (
        "newer ones that are not to be served",
        [done("x", 1), done("z", 3, base="hf://o/other@1"), FAILED, undone("t", 5)],
        "x",
        ("", False),
        "4 jobs match; newest complete is x; t is not complete (Training); y failed (GateFailed: evalLoss 2.1 is above "
        "1.9); z was trained on hf://o/other@1, but this deployment serves hf://o/m@abc; an adapter fits its own base "
        "only",
    ),
    ("under way", [FAILED, undone("t", 5)], "", WAITING, "2 jobs match; none can be served; t is not complete"),
    ("all failed", [FAILED], "", STALLED, "1 job matches; none can be served; y failed (GateFailed"),
    (
        "too large",
        [done("x", 1, rank=64)],
        "",
        (reasons.ADAPTER_MISFIT, True),
        "1 job matches; none can be served; x has rank 64, and engine.lora.maxRank is 32: raise it to at least 64",
    ),
    (
        "a whole model",
        [done("x", 1, kind="Model")],
        "",
        (reasons.WRONG_ARTIFACT, True),
        "x published a whole model, not an adapter",
    ),
    (
        "another commit",
        [done("x", 1, base="hf://o/m@def")],
        "",
        (reasons.WRONG_BASE, True),
        "set model.revision: def",
    ),
    ("many", [undone(f"t{day}", day) for day in range(1, 8)], "", WAITING, "t5 is not complete (Training); and 4 more"),
]


@pytest.mark.parametrize(("jobs", "chosen", "why", "words"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_the_newest_complete_job_that_fits(
    jobs: list[Candidate], chosen: str, why: tuple[str, bool], words: str
) -> None:
    found = resolve(*jobs)
    assert (found.job, (found.reason, found.stalled)) == (chosen, why)
    assert words in found.message
    assert bool(found.wire) == bool(chosen)


@pytest.mark.parametrize(
    ("newer", "why"),
    [
        ([], ""),
        ([undone("t", 5)], ""),
        ([FAILED], reasons.FINETUNEJOB_FAILED),
        ([done("z", 3, rank=64), FAILED, undone("t", 5)], reasons.FINETUNEJOB_FAILED),
        ([done("z", 6, rank=64), FAILED], reasons.ADAPTER_MISFIT),
    ],
)
def test_why_a_newer_one_is_passed_over(newer: list[Candidate], why: str) -> None:
    first = resolve(done("x", 1), *newer)
    assert (first.job, first.passed, first.reason) == ("x", why, "")
    assert resolve(done("w", 0), *newer, known=status_of(first)).passed == why, "also where its job has gone"
    assert resolve(*newer, known=status_of(first)).passed == why, "also where no other can be served"


@pytest.mark.parametrize(
    ("left", "why"),
    [
        ([], ""),
        ([done("a", 1), undone("b", 2, failed="GateFailed: x")], ""),
        ([undone("b", 2, failed="GateFailed: x"), done("q", 3, rank=64)], ""),
        ([undone("b", 2, failed="GateFailed: x"), FAILED], reasons.FINETUNEJOB_FAILED),
        ([undone("b", 2, failed="GateFailed: x"), done("z", 4, rank=64)], reasons.ADAPTER_MISFIT),
        ([undone("t", 5)], ""),
    ],
    ids=["none", "an older one failed", "none fits, all are older", "newer, failed", "newer, misfits", "under way"],
)
def test_what_is_served_is_what_others_are_newer_than(left: list[Candidate], why: str) -> None:
    """Where the job of the version that serves was deleted."""
    served = status_of(resolve(done("served", 3)))
    found = resolve(*left, known=served)
    assert (found.digest, found.reason, found.passed) == (served.digest, "", why)


def test_a_newer_job_that_completes_moves_the_version() -> None:
    first = resolve(done("x", 1, "a"), undone("y", 2))
    assert first.digest == hexed("a")
    second = resolve(done("x", 1, "a"), done("y", 2, "b"), known=status_of(first))
    assert (second.digest, second.job) == (hexed("b"), "y")
    assert status_of(second).job_created == "2026-11-02T00:00:00Z"


def test_a_served_version_outlives_its_job_and_is_never_an_older_one() -> None:
    newest = status_of(resolve(done("y", 2, "b")))
    alone = resolve(known=newest)
    assert (alone.digest, alone.reason) == (hexed("b"), "")
    older = resolve(done("x", 1, "a"), known=newest)
    assert (older.digest, older.job) == (hexed("b"), "y")
    assert older.message == "serving the version of y, the newest seen; 1 job matches; newest complete is x"
    failing = resolve(done("x", 1, "a"), FAILED, known=newest)
    assert (failing.digest, failing.stalled) == (hexed("b"), False)


def test_a_version_of_another_source_serves_until_the_selector_has_one_of_its_own() -> None:
    named = AdapterStatus(name="bot", digest=hexed("c"), path="artifacts/c", state="Ready", source="finetunejob://z")
    waiting = resolve(undone("x", 1), known=named)
    assert (waiting.digest, waiting.reason) == (hexed("c"), reasons.WAITING_FOR_JOB)
    assert waiting.message.endswith("; still serving version cccccccccccc")
    assert resolve(done("x", 1, "a"), known=named).digest == hexed("a")


def test_a_version_for_another_base_is_not_kept() -> None:
    other = AdapterStatus(name="bot", digest=hexed("c"), path="artifacts/c", state="Ready", base="hf://o/m@before")
    assert resolve(known=other).wire is None


@pytest.mark.parametrize(
    ("selector", "labels", "expected"),
    [
        ({"matchLabels": {"a": "1"}}, {"a": "1", "b": "2"}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "2"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, {"a": "2"}, True),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1"]}]}, {}, False),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, {}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, {"a": "1"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {"a": ""}, True),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, {"a": ""}, False),
        ({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]}, {"a": "1"}, False),
    ],
)
def test_selectors_read_as_kubernetes_reads_them(
    selector: dict[str, Any], labels: dict[str, str], expected: bool
) -> None:
    assert candidates.matches(LabelSelector.model_validate(selector), labels) is expected


def job(name: str, namespace: str = "team", **labels: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "uid": name, "labels": labels, "resourceVersion": "1"}
    return {"kind": "FineTuneJob", "metadata": metadata}


def test_every_job_that_a_selector_may_take_wakes_the_deployment() -> None:
    cache = Cache()
    cache.put(job("x", app="support"))
    cache.put(job("elsewhere", "other", app="support"))
    jobs, key = ReadJobs(cache), Key("ModelDeployment", "team", "chat")
    selector = SPEC.source.selector
    assert selector is not None
    assert [found.name for found in jobs.reader(key).matching(selector)] == ["x"]
    assert jobs.dependents(job("new", app="support")) == (key,)
    assert jobs.dependents(job("x", app="moved")) == (key,), "it may no longer be taken"
    assert jobs.dependents(job("new", app="other")) == ()
    assert jobs.dependents(job("new", "other", app="support")) == ()
    jobs.reader(key)
    assert jobs.dependents(job("new", app="support")) == (), "the selector is no longer in the spec"
    jobs.reader(key).matching(selector)
    jobs.forget(key)
    assert jobs.dependents(job("x", app="support")) == ()
