"""Pods that leave and keep the room that held requests wait for: when they are ended."""

from typing import Any

import pytest
from serving_facts import deployment, facts, k8s_deployment, pod, revision

from tuneloop_core.api.modeldeployment_status import ColdStartPhase, ColdStartStatus
from tuneloop_core.serving import DeploymentLoad
from tuneloop_operator.policy import drains, reasons
from tuneloop_operator.policy.drains import Held
from tuneloop_operator.policy.serving import summarize

Obj = dict[str, Any]
QUOTA = "exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"


def leaving(grace: int = 610, phase: str = "Running") -> Obj:
    made = pod(ready=False)
    made["metadata"] |= {"name": "old", "deletionTimestamp": "x", "deletionGracePeriodSeconds": grace}
    made["status"]["phase"] = phase
    return made


def coming(label: str = "r2", *, placed: bool = False, ready: bool = False) -> Obj:
    made = pod("10.0.0.2", ready=ready)
    made["metadata"] = {"name": "new", "uid": "n", "labels": {"tuneloop.dev/revision": label}}
    no = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "Insufficient nvidia.com/gpu",
    }
    made["status"]["conditions"] += [] if placed else [no]
    return made


def refused() -> Obj:
    made = k8s_deployment(2, 0)
    made["status"]["conditions"] = [{"type": "ReplicaFailure", "status": "True", "message": QUOTA}]
    return made


def disrupted(made: Obj) -> Obj:
    """As a drain, a preemption or a lost node marks it."""
    made["metadata"]["name"] = "evicted"
    made["status"]["conditions"].append(
        {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    )
    return made


ALONE = {2: k8s_deployment(2, 0)}


@pytest.mark.parametrize(
    ("pods", "deployments", "going"),
    [
        pytest.param([leaving(), coming()], ALONE, ["old"], id="no node has room"),
        pytest.param([leaving()], {2: refused()}, [], id="no quota has room: its next try comes when it comes"),
        pytest.param([disrupted(leaving()), coming()], ALONE, [], id="its node is drained"),
        pytest.param([disrupted(leaving()), leaving(), coming()], ALONE, ["old"], id="one of them only"),
        pytest.param([leaving(), coming("r1")], {1: k8s_deployment(1, 0)}, ["old"], id="to zero and up again"),
        pytest.param([leaving(), coming(placed=True)], ALONE, [], id="there was room for both"),
        pytest.param([leaving(), coming(), pod()], ALONE, [], id="another pod answers"),
        pytest.param([leaving(), coming(placed=True, ready=True)], ALONE, [], id="the new one answers"),
        pytest.param([leaving(phase="Succeeded"), coming()], ALONE, [], id="it has ended"),
        pytest.param([coming()], ALONE, [], id="none leaves: somebody else has the room"),
        pytest.param([leaving()], {}, [], id="scaled down: nothing is to come"),
    ],
)
def test_when_pods_that_leave_keep_the_room(pods: list[Obj], deployments: dict[int, Obj], going: list[str]) -> None:
    assert [each["metadata"]["name"] for each in drains.blocking(pods, deployments)] == going


@pytest.mark.parametrize(
    ("grace", "held", "ends"),
    [
        pytest.param(610, Held(1, 229.9, 300.0, 60.0), False, id="a request can wait a little longer"),
        pytest.param(610, Held(1, 230.0, 300.0, 60.0), True, id="there is just time for a start"),
        pytest.param(610, Held(9, 300.0, 300.0, 60.0), True, id="too late for the first, not for those after it"),
        pytest.param(610, Held(1, 139.0, 300.0), False, id="no start was measured: half the hold is for it"),
        pytest.param(610, Held(1, 140.0, 300.0), True, id="no start was measured, half the hold is over"),
        pytest.param(610, Held(0, 0.0, 300.0, 60.0), False, id="nobody waits"),
        pytest.param(610, Held(1, 299.0, 300.0, 290.0), False, id="no hold is long enough for a start"),
        pytest.param(1, Held(1, 299.0, 300.0, 60.0), False, id="was told before"),
    ],
)
def test_when_it_must_end(grace: int, held: Held, *, ends: bool) -> None:
    assert [each["metadata"]["name"] for each in drains.due([leaving(grace)], held)] == (["old"] if ends else [])


def test_who_waits_is_summed_over_the_gateways() -> None:
    loads = [
        DeploymentLoad(namespace="n", name="a", queued=queued, unserved_seconds=seconds)
        for queued, seconds in ((2, 5.0), (0, 0.0), (1, 9.0))
    ]
    assert Held.of(loads, 300.0, 60.0) == Held(3, 9.0, 300.0, 60.0)
    assert Held.of([], 300.0, 60.0).count == 0


def test_a_start_is_counted_from_when_there_was_room() -> None:
    phases = [ColdStartPhase(name=name, seconds=seconds) for name, seconds in (("scheduled", 99.0), ("engine", 12.5))]
    assert drains.start_seconds(ColdStartStatus(seconds=111.5, phases=phases)) == 12.5
    assert drains.start_seconds(None) == 0.0


def test_the_status_says_who_keeps_the_room() -> None:
    waiting = revision(name="r2", ready=False, ready_replicas=0)
    told = summarize(
        deployment(), facts(revisions=[waiting], judged=k8s_deployment(2, 0), pods=[leaving(), coming()])
    ).conditions[0]
    assert (told.status, told.reason) == ("False", reasons.UNSCHEDULABLE)
    assert "; old leaves and keeps its room until its last stream has ended" in told.message
    assert told.message.endswith("where requests wait, only as long as they can be held (gateway.hold.maxSeconds)")


def test_what_a_quota_refused_waits_for_the_last_stream() -> None:
    waiting = revision(name="r2", ready=False, ready_replicas=0)
    told = summarize(deployment(), facts(revisions=[waiting], judged=refused(), pods=[leaving()])).conditions[0]
    assert (told.status, told.reason) == ("False", reasons.QUOTA_EXCEEDED)
    assert told.message.endswith("its last stream has ended, at most the chart's server.drainSeconds")
