"""What the publish pod gets for an export, and that no other pod gets any of it."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from operator_world import FETCHED, PUBLISHED

from tuneloop_core.api import FineTuneJob
from tuneloop_core.constants import STAGE_INPUT_ENV
from tuneloop_core.settings import HubSettings, ImageSettings, Settings
from tuneloop_core.stages import FetchResult, Stage, Termination
from tuneloop_operator.build.stages import build_stage
from tuneloop_operator.names import JOB_STAGES
from tuneloop_operator.policy import results

Obj = dict[str, Any]
SETTINGS = Settings(
    images=ImageSettings(trainer="registry/trainer:1", server="registry/server:1"),
    hub=HubSettings(endpoint="http://hub.example.com", refused_addresses=["10.0.0.1/32"]),
)
FETCHED_RESULT = FetchResult.model_validate(FETCHED)


def job(output: Obj | None) -> FineTuneJob:
    spec: Obj = {"model": {"uri": "hf://o/m"}, "dataset": {"uri": "hf://datasets/o/d"}}
    metadata = {"name": "one", "namespace": "team", "uid": "u"}
    return FineTuneJob.model_validate({"metadata": metadata, "spec": spec | ({"output": output} if output else {})})


def pod(stage: Stage, output: Obj | None) -> Obj:
    fetched = None if stage is Stage.FETCH else FETCHED_RESULT
    built: Obj = build_stage(stage, job(output), fetched, SETTINGS, "1")["spec"]["template"]["spec"]
    return built


def environment(spec: Obj) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in spec["containers"][0]["env"]}


def secret_keys(spec: Obj) -> dict[str, dict[str, bool]]:
    """Secret: its mounted keys, and whether each may be missing."""
    found: dict[str, dict[str, bool]] = {}
    for volume in spec["volumes"]:
        for source in volume.get("projected", {}).get("sources", []):
            for item in source["secret"]["items"]:
                keys = found.setdefault(source["secret"]["name"], {})
                keys[item["key"]] = source["secret"].get("optional", False)
    return found


@pytest.mark.parametrize(
    ("uri", "keys"),
    [
        ("hf://o/m", {"token": False}),
        ("s3://b/models", {"accessKeyId": False, "secretAccessKey": False, "sessionToken": True}),
        ("oci://registry.example.com/m:v1", {"token": False, "username": True}),
    ],
)
def test_only_publish_mounts_the_keys_that_the_scheme_needs(uri: str, keys: dict[str, bool]) -> None:
    output = {"uri": uri, "credentialsSecret": "push"}
    assert secret_keys(pod(Stage.PUBLISH, output)) == {"push": keys}
    for stage in JOB_STAGES:
        if stage is not Stage.PUBLISH:
            assert "push" not in secret_keys(pod(stage, output))


@pytest.mark.parametrize("output", [None, {"uri": "s3://b/models"}])
def test_without_a_secret_nothing_is_mounted(output: Obj | None) -> None:
    assert secret_keys(pod(Stage.PUBLISH, output)) == {}


def test_a_claim_is_mounted_for_writing_by_publish_only() -> None:
    output = {"uri": "pvc://shared/models"}
    (mount,) = (m for m in pod(Stage.PUBLISH, output)["containers"][0]["volumeMounts"] if m["name"] == "claim-output")
    assert mount == {"name": "claim-output", "mountPath": "/claims/output", "readOnly": False}
    assert all("claim-output" not in str(pod(s, output)) for s in JOB_STAGES if s is not Stage.PUBLISH)


def test_publish_may_ask_a_hub_but_not_at_refused_addresses() -> None:
    found = environment(pod(Stage.PUBLISH, {"uri": "hf://o/m"}))
    assert "HF_HUB_OFFLINE" not in found
    assert environment(pod(Stage.TRAIN, {"uri": "hf://o/m"}))["HF_HUB_OFFLINE"] == "1"
    told = json.loads(found[STAGE_INPUT_ENV])
    assert (told["hubEndpoint"], told["refusedAddresses"]) == ("http://hub.example.com", ["10.0.0.1/32"])


def test_status_names_where_held_out_rows_came_from() -> None:
    spec = {"model": {"uri": "hf://o/m"}, "dataset": {"uri": "s3://rows/a/", "validation": {"uri": "s3://evals/a/"}}}
    owner = FineTuneJob.model_validate({"metadata": {"name": "a", "namespace": "b"}, "spec": spec})
    fetched = {"modelUri": "hf://o/m@1", "modelPath": "p", "modelCommit": "1", "modelBytes": 2_000_000}
    said = Termination(stage=Stage.FETCH, outcome="Succeeded", result=fetched | {"datasetBytes": 3_000_000})
    found = results.absorb(Stage.FETCH, owner, said, (), datetime.now(UTC))
    assert found["dataset"].validation_uri == "s3://evals/a/"
    words = results.words(Stage.FETCH, owner.status.model_copy(update=found))
    assert words == "hf://o/m@1 (2.0 MB) and s3://rows/a/ with s3://evals/a/ (3.0 MB) are in the store"


def test_status_never_shows_a_signature() -> None:
    rows, held_out = (f"https://h.example.com/{name}.jsonl?X-Amz-Signature=s3cret" for name in ("rows", "quiz"))
    spec = {"model": {"uri": "hf://o/m"}, "dataset": {"uri": rows, "validation": {"uri": held_out}}}
    owner = FineTuneJob.model_validate({"metadata": {"name": "a", "namespace": "b"}, "spec": spec})
    fetched = {"modelUri": "hf://o/m@1", "modelPath": "p", "modelCommit": "1", "modelBytes": 1, "datasetBytes": 1}
    said = Termination(stage=Stage.FETCH, outcome="Succeeded", result=fetched)
    status = owner.status.model_copy(update=results.absorb(Stage.FETCH, owner, said, (), datetime.now(UTC)))
    assert "https://h.example.com/rows.jsonl with https://h.example.com/quiz.jsonl" in results.words(
        Stage.FETCH, status
    )
    assert "s3cret" not in status.model_dump_json()


def test_status_names_the_copy_however_long_its_uri() -> None:
    uri = f"oci://{'r' * 200}.example.com/{'m' * 280}:v1@sha256:{'0' * 64}"
    said = Termination(stage=Stage.PUBLISH, outcome="Succeeded", result=PUBLISHED | {"exportedUri": uri})
    assert results.absorb(Stage.PUBLISH, job(None), said, (), datetime.now(UTC))["artifact"].uri == uri
