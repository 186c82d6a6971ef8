"""Golden pairs: tests/golden/input/operator-*.yaml is built into tests/golden/output/ of the same name.

After a wanted change: ``GOLDEN=write pytest tests/unit/operator/test_operator_golden.py``, then read the diff.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuneloop_core.api import FineTuneJob, ModelDeployment
from tuneloop_core.serving import Adapter, AdapterList
from tuneloop_core.settings import HubSettings, ImageSettings, ServerSettings, Settings
from tuneloop_core.stages import FetchResult, Stage
from tuneloop_operator.build import serving
from tuneloop_operator.build.peers import build_peers
from tuneloop_operator.build.policies import build_policies
from tuneloop_operator.build.server import Revision, build_deployment
from tuneloop_operator.build.stages import build_model_fetch, build_stage
from tuneloop_operator.build.store import build_claim
from tuneloop_operator.names import JOB_STAGES

GOLDEN = Path(__file__).parents[2] / "golden"
INPUTS = sorted((GOLDEN / "input").glob("operator-*.yaml"))
SETTINGS = Settings(
    images=ImageSettings(trainer="registry/trainer:1", server="registry/server:1", pull_secrets=["registry"]),
    hub=HubSettings(
        endpoint="http://hub.example.com", refused_addresses=["10.0.0.1/32", "fd00::1/128"], max_bytes=10**9
    ),
)
FETCHED = FetchResult(
    model_uri="hf://org/model@abc",
    model_path="models/org/model/abc",
    model_commit="abc",
    model_bytes=1,
    dataset_path="datasets/def",
    dataset_digest="sha256:def",
)
DIGEST = "sha256:" + "d" * 64


@pytest.mark.parametrize("source", INPUTS, ids=lambda path: path.stem)
def test_golden(source: Path) -> None:
    built = build(yaml.safe_load(source.read_text()))
    target = GOLDEN / "output" / source.name
    if os.environ.get("GOLDEN") == "write":
        target.write_text(yaml.safe_dump_all(built, sort_keys=False, width=120, allow_unicode=True))
    assert list(yaml.safe_load_all(target.read_text())) == built


def test_every_output_has_its_input() -> None:
    outputs = {path.name for path in (GOLDEN / "output").glob("operator-*.yaml")}
    assert outputs == {path.name for path in INPUTS}
    assert outputs


def test_a_server_that_goes_has_the_time_of_the_settings() -> None:
    deployment = ModelDeployment.model_validate(
        yaml.safe_load((GOLDEN / "input/operator-deployment-gpu.yaml").read_text())
    )
    settings = SETTINGS.model_copy(update={"server": ServerSettings(drain_seconds=30)})
    built = build_deployment(deployment, Revision(1, "registry/server:1", "models/x", 1), settings, {})
    pod = built["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > 30, "the engine ends after the last stream"
    assert {"name": "TUNELOOP_SERVER_GRACE_SECONDS", "value": "30"} in pod["containers"][0]["env"]


def build(resource: dict[str, Any]) -> list[dict[str, Any]]:
    """Everything that the operator may make for this resource."""
    if resource["kind"] == "Namespace":
        name = resource["metadata"]["name"]
        return [build_claim(name, SETTINGS.store), *build_policies(name, SETTINGS)]
    if resource["kind"] == "FineTuneJob":
        job = FineTuneJob.model_validate(resource)
        stages = [
            build_stage(stage, job, FETCHED if stage is not Stage.FETCH else None, SETTINGS, "1")
            for stage in JOB_STAGES
        ]
        return [*stages, *build_peers(job, SETTINGS)]
    deployment = ModelDeployment.model_validate(resource)
    revision = Revision(number=1, image="registry/server:1", model_path="models/org/model/abc", replicas=2)
    adapters = AdapterList(adapters=[Adapter(name="bot", digest=DIGEST, path="artifacts/" + "d" * 64)])
    keys = serving.Keys(issuer="https://issuer", jwks={"keys": []})
    servers = {"r1": serving.server_config(deployment)}
    return [
        build_model_fetch(deployment, SETTINGS),
        serving.build_service(deployment),
        serving.build_budget(deployment),
        serving.build_config_map(deployment, servers, {"": adapters, "r1": adapters}, keys, SETTINGS),
        build_deployment(deployment, revision, SETTINGS, {"tuneloop.dev/model-source": "hf://org/model@main"}),
    ]
