"""How many resources are in which state, as Prometheus sees it."""

from typing import Any

import pytest

from tuneloop_operator.policy.conditions import STATES, state_of
from tuneloop_operator.reconcile.cache import Cache
from tuneloop_operator.reconcile.census import Census


@pytest.mark.parametrize(
    ("true", "state"),
    [
        (["Ready", "Complete", "Published"], "Complete"),
        (["Stalled", "Failed"], "Failed"),
        (["Ready", "Stalled"], "Stalled"),
        (["Ready", "Reconciling"], "Reconciling"),
        (["Suspended"], "Suspended"),
        (["Ready", "ModelFetched", "AdaptersReady"], "Ready"),
        ([], "New"),
    ],
)
def test_a_resource_is_in_one_state(true: list[str], state: str) -> None:
    assert state_of(true) == state


def resource(kind: str, name: str, *conditions: tuple[str, str], namespace: str = "team") -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "uid": f"{kind}-{namespace}-{name}", "resourceVersion": "1"}
    listed = [{"type": type_, "status": status} for type_, status in conditions]
    spec = {"model": {"uri": "hf://o/m"}}
    return {"kind": kind, "metadata": metadata, "spec": spec, "status": {"conditions": listed}}


def test_counts_by_kind_namespace_and_state() -> None:
    cache = Cache()
    cache.put(resource("FineTuneJob", "a", ("Ready", "False"), ("Stalled", "True")))
    cache.put(resource("FineTuneJob", "b", ("Ready", "False"), ("Stalled", "True")))
    cache.put(resource("FineTuneJob", "c", namespace="other"))
    cache.put(resource("ModelDeployment", "a", ("Ready", "True")))
    (family,) = Census(cache).collect()
    counts = {tuple(sample.labels.values()): sample.value for sample in family.samples}
    assert {key: count for key, count in counts.items() if count} == {
        ("FineTuneJob", "team", "Stalled"): 2,
        ("FineTuneJob", "other", "New"): 1,
        ("ModelDeployment", "team", "Ready"): 1,
    }
    assert len(counts) == 3 * len(STATES), "the other states are 0, not absent"
