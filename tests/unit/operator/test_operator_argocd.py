"""What Argo CD makes of our statuses: the Lua that examples/argocd ships, run on what the operator really writes."""

from pathlib import Path
from typing import Any

import lupa.lua51  # Argo CD runs gopher-lua, which is Lua 5.1
import pytest
import yaml
from serving_facts import deployment, facts, pod, revision, server

from tuneloop_core.api import FineTuneJob, FineTuneJobStatus, ModelDeployment
from tuneloop_core.api.rollout import RolloutStatus
from tuneloop_core.stages import Stage
from tuneloop_operator.policy import conditions, reasons
from tuneloop_operator.policy.course import Course
from tuneloop_operator.policy.finetune import summary
from tuneloop_operator.policy.serving import ServingFacts, summarize
from tuneloop_operator.policy.verdicts import State, Verdict

ROOT = Path(__file__).resolve().parents[3]
MANIFESTS = list(yaml.safe_load_all((ROOT / "examples/argocd/applications.yaml").read_text()))
APPLICATIONS = [each for each in MANIFESTS if each["kind"] == "Application"]
HEALTH = yaml.safe_load((ROOT / "examples/argocd/health.yaml").read_text())["data"]


def health(kind: str, resource: Any) -> tuple[str, str]:
    """(status, message) by the script for this kind; a script sees the resource as the API server stores it."""
    lua = lupa.lua51.LuaRuntime(unpack_returned_tuples=True)
    lua.globals()["obj"] = lua.table_from(resource, recursive=True)
    found = lua.execute(HEALTH[f"resource.customizations.health.tuneloop.dev_{kind}"])
    return found["status"], found["message"]


def job(state: State, generation: int = 1) -> dict[str, Any]:
    wanted = summary(Stage.TRAIN, Verdict(state, "Why", "so it is"))
    listed = conditions.merge([], wanted, 1, facts().now)
    status = FineTuneJobStatus(observed_generation=1, conditions=listed)
    return stored(status, generation)


def stored(status: Any, generation: int) -> dict[str, Any]:
    return {"metadata": {"generation": generation}, "status": status.model_dump(by_alias=True, mode="json")}


JOBS = [
    (State.PENDING, "Progressing"),
    (State.RUNNING, "Progressing"),
    (State.SUSPENDED, "Suspended"),
    (State.STALLED, "Degraded"),
    (State.FAILED, "Degraded"),
    (State.DONE, "Healthy"),
]


@pytest.mark.parametrize(("state", "wanted"), JOBS)
def test_finetunejobs(state: State, wanted: str) -> None:
    status, message = health("FineTuneJob", job(state))
    assert status == wanted
    assert message.endswith("so it is")


def test_every_state_has_its_health() -> None:
    assert {state for state, _ in JOBS} == set(State)


@pytest.mark.parametrize("kind", [FineTuneJob.__name__, ModelDeployment.__name__])
@pytest.mark.parametrize("resource", [{}, {"status": {"observedGeneration": -1}}, job(State.DONE, generation=2)])
def test_what_the_operator_has_not_looked_at_is_progressing(kind: str, resource: dict[str, Any]) -> None:
    """Right after it was applied, and after each change: the status still tells of the generation before."""
    found = {"metadata": {"generation": 1}} | resource
    assert health(kind, found) == ("Progressing", "the operator has not looked at it yet")


def canary(phase: str) -> Course:
    moment = "2026-11-23T12:00:00Z"
    fields = {"kind": "Adapter", "name": "bot", "stable": "a", "canary": "b", "started": moment, "since": moment}
    return Course(status=RolloutStatus(phase=phase, message="10 % to b", **fields))


DEPLOYMENTS = [
    (facts(), "Healthy"),
    (facts(replicas=0, pods=[]), "Healthy"),
    (facts(revisions=[revision(ready=False, ready_replicas=0)], pods=[pod(ready=False)]), "Progressing"),
    (facts(servers={"10.0.0.1": server("Failed", "rank 128 > 32")}), "Degraded"),
    (facts(model=Verdict(State.STALLED, "ModelNotFound", "hf://o/m: not found"), revisions=[], pods=[]), "Degraded"),
    (facts(course=canary("Canary")), "Progressing"),
    (facts(course=canary("Held")), "Progressing"),
    (facts(course=canary("Paused")), "Suspended"),
    (facts(course=canary("Promoted")), "Healthy"),
]


@pytest.mark.parametrize(("seen", "wanted"), DEPLOYMENTS)
def test_modeldeployments(seen: ServingFacts, wanted: str) -> None:
    status, message = health("ModelDeployment", stored(summarize(deployment(), seen), 3))
    assert status == wanted
    assert message


def test_a_rollback_is_degraded_though_the_version_before_serves() -> None:
    listed = conditions.merge(
        [],
        [conditions.Wanted("Ready", True, reasons.READY, "r1"), conditions.Wanted("Stalled", True, "RolledBack", "r2")],
        3,
        facts().now,
    )
    status = deployment().status.model_copy(update={"observed_generation": 3, "conditions": listed})
    assert health("ModelDeployment", stored(status, 3)) == ("Degraded", "r2")


@pytest.mark.parametrize("application", APPLICATIONS, ids=lambda each: each["metadata"]["name"])
def test_applications_try_again_and_set_nothing_that_they_ignore(application: dict[str, Any]) -> None:
    spec = application["spec"]
    assert spec["syncPolicy"]["retry"]["limit"] > 0
    options = spec["syncPolicy"]["syncOptions"]
    assert ("ignoreDifferences" in spec) == ("RespectIgnoreDifferences=true" in options)


def test_namespaces_of_the_chart_come_first() -> None:
    """It puts a Role into each, and Argo CD makes an Application's own namespace only."""
    named = APPLICATIONS[0]["spec"]["source"]["helm"]["valuesObject"]["scope"]["namespaces"]
    first = [each["metadata"]["name"] for each in MANIFESTS[: len(named)] if each["kind"] == "Namespace"]
    assert first == named
