"""A replica's start by phase, from the pod's own times and the server's phases; the median of the last five."""

from typing import Any

import pytest

from tuneloop_core.api.modeldeployment_status import ColdStartStatus
from tuneloop_core.serving import ServerStatus
from tuneloop_operator.metrics import REGISTRY
from tuneloop_operator.names import Key
from tuneloop_operator.policy.coldstart import cold_start, measure, split
from tuneloop_operator.reconcile.ledger import MOST_DEPLOYMENTS, Starts

PHASES = {"imports": 8.0, "configuration": 1.0, "engine": 5.0, "weights": 2.0, "warmUp": 1.5, "adapters": 0.5}


def pod(ip: str = "10.0.0.1", *, started: str = "2026-11-23T10:00:05Z", restarts: int = 0) -> dict[str, Any]:
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-11-23T10:00:01Z"}
    container = {"name": "main", "restartCount": restarts, "state": {"running": {"startedAt": started}}}
    return {
        "metadata": {"name": "p", "uid": "p", "creationTimestamp": "2026-11-23T10:00:00Z"},
        "status": {"podIP": ip, "conditions": [scheduled], "containerStatuses": [container]},
    }


def server(*, ready: bool = True, **phases: float) -> ServerStatus:
    return ServerStatus(ready=ready, draining=False, model="m", phases=PHASES | phases)


def test_a_start_by_phase() -> None:
    found = measure(pod(), server(total=17.0))
    assert found is not None
    assert found.phases == {"scheduled": 1.0, "image": 4.0, "model": 2.0, "engine": 13.0, "warmUp": 2.0}
    assert found.seconds == 22.0
    assert found.at.isoformat() == "2026-11-23T10:00:22+00:00"


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        ({}, {"model": 0.0, "engine": 0.0, "warmUp": 0.0}),
        ({"imports": 2.0}, {"model": 0.0, "engine": 2.0, "warmUp": 0.0}),
        (PHASES, {"model": 2.0, "engine": 12.0, "warmUp": 2.0}),
        ({"total": 1.0, "weights": 2.0}, {"model": 2.0, "engine": 0.0, "warmUp": 0.0}),
    ],
)
def test_split(phases: dict[str, float], expected: dict[str, float]) -> None:
    assert split(phases) == expected


def test_what_is_not_known_is_no_start() -> None:
    assert measure(pod(), None) is None
    assert measure(pod(), server(ready=False)) is None
    assert measure(pod(restarts=1), server()) is None
    assert measure({"metadata": {"name": "p"}, "status": {}}, server()) is None


def test_median_of_the_last_five_and_each_start_once() -> None:
    status: ColdStartStatus | None = None
    for minute, total in enumerate((17.0, 17.0, 47.0, 27.0, 37.0, 57.0)):
        started = f"2026-11-23T10:{minute:02}:05Z"
        servers = {"10.0.0.1": server(total=total)}
        status = cold_start(status, [pod(started=started)], servers)
        assert status is not None
        assert cold_start(status, [pod(started=started)], servers) is status, "the same start is not news"
    assert status is not None
    assert len(status.recent) == 5
    assert status.seconds == sorted(status.recent)[2]
    assert status.time == "2026-11-23T10:06:02Z"
    assert [phase.name for phase in status.phases] == ["scheduled", "image", "model", "engine", "warmUp"]
    assert cold_start(None, [], {}) is None
    assert cold_start(status, [], {}) is status


def count(key: Key, name: str) -> float | None:
    labels = {"namespace": key.namespace, "name": name, "phase": "total"}
    return REGISTRY.get_sample_value("tuneloop_cold_start_seconds_count", labels)


def test_the_metric_counts_a_start_once_and_goes_with_its_deployment() -> None:
    now = cold_start(None, [pod()], {"10.0.0.1": server(total=17.0)})
    starts, key = Starts(), Key("ModelDeployment", "once", "chat")
    starts.note(key, None, now)
    starts.note(key, now, now)
    starts.note(key, None, None)
    assert count(key, "chat") == 1.0
    labels = {"namespace": "once", "name": "chat", "phase": "total"}
    assert REGISTRY.get_sample_value("tuneloop_cold_start_seconds_sum", labels) == 22.0
    starts.forget(key)
    assert count(key, "chat") is None
    starts.forget(key)


def test_deployments_beyond_the_bound_are_counted_together() -> None:
    now = cold_start(None, [pod()], {"10.0.0.1": server(total=17.0)})
    starts, keys = Starts(), [Key("ModelDeployment", "many", f"m{number}") for number in range(MOST_DEPLOYMENTS + 2)]
    for key in keys:
        starts.note(key, None, now)
    assert [count(key, key.name) for key in keys[-3:]] == [1.0, None, None]
    assert count(keys[0], "") == 2.0
    starts.forget(keys[0])
    starts.note(keys[-1], None, now)
    assert count(keys[-1], keys[-1].name) == 1.0, "there is room for one more"
    for key in keys:
        starts.forget(key)
    assert count(keys[-1], keys[-1].name) is None
