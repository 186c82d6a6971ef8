"""What of a store is in use: a fetch removes what this does not name."""

from datetime import UTC, datetime
from typing import Any

import pytest

from tuneloop_core.stages import StoreUse
from tuneloop_operator.policy.storeuse import MAX_LISTED, store_use

Obj = dict[str, Any]
NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


def job(uid: str, *, conditions: dict[str, str] | None = None, **paths: str) -> Obj:
    told = [{"type": name, "status": status} for name, status in (conditions or {}).items()]
    return {"metadata": {"uid": uid}, "status": {"conditions": told} | {k: {"path": v} for k, v in paths.items()}}


def server(*folders: str) -> Obj:
    mounts = [{"name": "store", "mountPath": "/m", "subPath": folder} for folder in folders]
    mounts.append({"name": "tmp", "mountPath": "/tmp"})
    return {"metadata": {"uid": "d"}, "spec": {"template": {"spec": {"containers": [{"volumeMounts": mounts}]}}}}


def used(jobs: tuple[Obj, ...] = (), deployments: tuple[Obj, ...] = (), servers: tuple[Obj, ...] = ()) -> StoreUse:
    found = store_use(jobs, deployments, servers, NOW)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("conditions", "needed"),
    [
        ({}, True),
        ({"Complete": "False", "Ready": "False"}, True),
        ({"Failed": "True"}, True),  # spec.retries may be raised
        ({"Suspended": "True"}, True),
        ({"Complete": "True", "Ready": "True"}, False),
    ],
)
def test_a_job_needs_what_it_fetched_until_it_has_succeeded(conditions: dict[str, str], needed: bool) -> None:
    found = used(jobs=(job("0123456789", conditions=conditions, model="models/hf/a/1", dataset="datasets/d"),))
    assert found.paths == (["datasets/d", "models/hf/a/1"] if needed else [])
    assert found.owners == (["01234567"] if needed else [])
    assert found.listed_at == "2026-11-29T12:00:00+00:00"


def test_a_job_that_has_fetched_nothing_yet_needs_its_work_folder() -> None:
    found = used(jobs=({"metadata": {"uid": "fedcba98-1"}},))
    assert (found.paths, found.owners) == ([], ["fedcba98"])


def test_a_deployment_needs_its_model_and_each_revision_the_model_that_it_mounts() -> None:
    deployments = (job("dddddddd-1", model="models/hf/new/2"),)
    found = used(deployments=deployments, servers=(server("models/hf/old/1", "artifacts"),))
    assert found.paths == ["models/hf/new/2", "models/hf/old/1"]
    assert found.owners == ["dddddddd"]


def test_artifacts_are_not_listed_since_nothing_removes_them() -> None:
    assert used(deployments=(job("d", model="artifacts/abc"),)).paths == []


def test_where_there_is_too_much_to_list_nothing_is_said() -> None:
    jobs = [job(f"{number:08x}") for number in range(MAX_LISTED + 1)]
    assert store_use(jobs[:-1], [], [], NOW) is not None
    assert store_use(jobs, [], [], NOW) is None
