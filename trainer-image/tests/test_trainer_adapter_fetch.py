"""Fetch of adapters made elsewhere: from each kind of place with its real client, and refused before the weights."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import artifacts
import hubs
import pods
import pytest
import stores
import torch
from safetensors.torch import save
from tuneloop_core.adapterconfig import AdapterFetchResult
from tuneloop_core.stages import FetchInput, Reason, Stage

from tuneloop_trainer import fetch
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.files import is_whole

pytestmark = pytest.mark.timeout(1800)  # on a cold machine the servers are built first

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 16,
    "lora_alpha": 32,
    "rank_pattern": {"v_proj": 24},
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
    "use_rslora": True,
    "base_model_name_or_path": "acme/base",
    "revision": "0" * 40,
}
WEIGHTS = save({"q_proj.lora_A.weight": torch.ones(8, 16), "q_proj.lora_B.weight": torch.ones(16, 8)})
DIVERGED = save({"lora_A.weight": torch.ones(8, 16), "lora_B.weight": torch.full((16, 8), torch.nan).bfloat16()})


def files(**change: Any) -> dict[str, bytes]:
    config = {key: value for key, value in {**CONFIG, **change}.items() if value is not None}
    return {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": WEIGHTS, "README.md": b"#"}


def config_only() -> dict[str, bytes]:
    return {"adapter_config.json": files()["adapter_config.json"]}


@pytest.fixture
def state() -> hubs.HubState:
    state = hubs.HubState()
    state.models = {
        "acme/bot": hubs.Repository(files()),
        "acme/secret": hubs.Repository(files(), private=True),
        "acme/gated": hubs.Repository(files(), gated=True),
        "acme/dora": hubs.Repository(files(use_dora=True)),
        "acme/whole": hubs.Repository({"config.json": b"{}", "model.safetensors": b"x"}),
        "acme/pickle": hubs.Repository(
            {"adapter_config.json": files()["adapter_config.json"], "adapter_model.bin": b""}
        ),
        "acme/broken": hubs.Repository(files() | {"adapter_config.json": b"{"}),
        "acme/diverged": hubs.Repository(files() | {"adapter_model.safetensors": DIVERGED}),
        "acme/cut": hubs.Repository(files() | {"adapter_model.safetensors": WEIGHTS[:-100]}),
    }
    return state


@pytest.fixture
def hub(state: hubs.HubState) -> Iterator[str]:
    with hubs.serving(lambda *request: hubs.hub_answer(state, *request)) as url:
        yield url


def run(pod: pods.Pod, hub: str = "", max_bytes: int = 0, keys: dict[str, str] | None = None, **source: str) -> Any:
    for key, value in (keys or {}).items():
        (pod.root / "secrets/adapter").mkdir(parents=True, exist_ok=True)
        (pod.root / "secrets/adapter" / key).write_text(value + "\n")
    stage_input = FetchInput(owner="ModelDeployment t/m", adapter=source, hub_endpoint=hub, max_bytes=max_bytes)
    return fetch.run(stage_input, pod.paths, artifacts.LOOPBACK)


def fails(pod: pods.Pod, hub: str = "", **more: Any) -> StageError:
    with pytest.raises(StageError) as caught:
        run(pod, hub, **more)
    assert not list(pod.paths.artifacts.iterdir()), "something was left behind"
    return caught.value


def in_claim(pod: pods.Pod, path: str, content: dict[str, bytes]) -> None:
    folder = pod.root / "claims/adapter" / path
    folder.mkdir(parents=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)


def test_from_the_hub_its_config_comes_first(bare_pod: pods.Pod, hub: str, state: hubs.HubState) -> None:
    found = run(bare_pod, hub, uri="hf://acme/bot", revision="v1")
    assert found.uri == f"hf://acme/bot@{hubs.COMMIT}"
    assert found.facts.model_dump() == {
        "rank": 24,
        "base": f"hf://acme/base@{'0' * 40}",
        "target_modules": "q_proj,v_proj",
    }
    folder = bare_pod.paths.artifacts.parent / found.path
    assert found.digest == f"sha256:{folder.name}"
    assert is_whole(folder)
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "DIGEST"}
    downloads = [
        path.rsplit("/", 1)[1] for method, path, _ in state.requests if "/resolve/" in path and method == "GET"
    ]
    assert downloads == ["adapter_config.json", "adapter_model.safetensors"]
    assert run(bare_pod, hub, uri="hf://acme/bot").cached


def test_the_same_adapter_from_elsewhere_is_the_same_version(bare_pod: pods.Pod, hub: str) -> None:
    in_claim(bare_pod, "adapters/bot", files())
    from_claim, from_hub = run(bare_pod, uri="pvc://data/adapters/bot"), run(bare_pod, hub, uri="hf://acme/bot")
    assert (from_claim.digest, from_claim.cached, from_hub.cached) == (from_hub.digest, False, True)


@pytest.mark.parametrize(
    ("source", "keys", "reason", "words"),
    [
        ({"uri": "hf://acme/secret"}, {}, Reason.ACCESS_DENIED, "no token was given"),
        ({"uri": "hf://acme/bot"}, {"token": "hf_bad"}, Reason.ACCESS_DENIED, "wrong, expired or may not read it"),
        ({"uri": "hf://acme/absent"}, {"token": "hf_good"}, Reason.MODEL_NOT_FOUND, "hf://acme/absent does not exist"),
        ({"uri": "hf://acme/bot", "revision": "gone"}, {}, Reason.REVISION_NOT_FOUND, "no branch, tag or commit gone"),
        ({"uri": "hf://acme/gated"}, {"token": "hf_good"}, Reason.GATED_MODEL_NOT_ACCEPTED, "licence"),
        ({"uri": "hf://acme/whole"}, {}, Reason.ADAPTER_UNSUPPORTED, "has no adapter_config.json: an adapter is a"),
        ({"uri": "hf://acme/pickle"}, {}, Reason.ADAPTER_UNSUPPORTED, "has no adapter_model.safetensors"),
        ({"uri": "hf://acme/broken"}, {}, Reason.ADAPTER_UNSUPPORTED, "is not JSON"),
        ({"uri": "hf://acme/diverged"}, {}, Reason.ADAPTER_UNSUPPORTED, "NaN or infinity, lora_B.weight first"),
        ({"uri": "hf://acme/cut"}, {}, Reason.ADAPTER_UNSUPPORTED, "safetensors cannot be read"),
        ({"uri": "hf://acme/dora"}, {}, Reason.ADAPTER_UNSUPPORTED, "uses DoRA"),
        ({"uri": "pvc://data/absent"}, {}, Reason.MODEL_NOT_FOUND, "no such folder in the claim"),
    ],
)
def test_each_refusal_has_its_reason(
    bare_pod: pods.Pod, hub: str, source: dict[str, str], keys: dict[str, str], reason: Reason, words: str
) -> None:
    error = fails(bare_pod, hub, keys=keys, **source)
    assert (error.reason, error.exit_code) == (reason, 42)
    assert words in error.message
    assert "hf_" not in error.message


def test_what_no_engine_loads_is_refused_before_its_weights(bare_pod: pods.Pod, hub: str, state: hubs.HubState) -> None:
    assert fails(bare_pod, hub, uri="hf://acme/dora").reason is Reason.ADAPTER_UNSUPPORTED
    assert not [path for _, path, _ in state.requests if path.endswith("adapter_model.safetensors")]


def test_a_link_out_of_the_claim_is_refused(bare_pod: pods.Pod, tmp_path: Path) -> None:
    in_claim(bare_pod, "bot", {})
    (tmp_path / "token").write_text("{}")
    (bare_pod.root / "claims/adapter/bot/adapter_config.json").symlink_to(tmp_path / "token")
    assert fails(bare_pod, uri="pvc://data/bot").reason is Reason.URI_REFUSED


def test_too_large_an_adapter_is_refused(bare_pod: pods.Pod, hub: str) -> None:
    error = fails(bare_pod, hub, max_bytes=100, uri="hf://acme/bot")
    assert (error.reason, "hub.maxBytes" in error.message) == (Reason.ADAPTER_UNSUPPORTED, True)


def test_from_a_real_s3_server(bare_pod: pods.Pod, tmp_path: Path) -> None:
    with stores.s3_server(tmp_path / "server") as server:
        client = artifacts.s3_client_of(server)
        client.create_bucket(Bucket="models")
        for name, data in files().items():
            client.put_object(Bucket="models", Key=f"team/bot/{name}", Body=data)
        good = {"accessKeyId": server.access_key_id, "secretAccessKey": server.secret_access_key}
        place = {"uri": "s3://models/team/bot/", "endpoint": server.endpoint}
        assert fails(bare_pod, **place).reason is Reason.ACCESS_DENIED
        absent = fails(bare_pod, keys=good, **place | {"uri": "s3://models/team/absent"})
        assert (absent.reason, "Check adapters[].from.uri" in absent.message) == (Reason.MODEL_NOT_FOUND, True)
        found = run(bare_pod, keys=good, **place)
    assert (found.facts.rank, is_whole(bare_pod.paths.artifacts.parent / found.path)) == (24, True)


def test_an_export_to_a_real_registry_comes_back(bare_pod: pods.Pod, tmp_path: Path) -> None:
    """By its tag and by its digest, and never with other bytes."""
    content = files()
    exported = artifacts.sealed_artifact(
        tmp_path / "out", WEIGHTS, **{"adapter_config.json": content["adapter_config.json"]}
    )
    username, token = stores.WRITER
    keys = {"username": username, "token": token}
    with stores.registry_server(tmp_path / "server") as address:
        place = {"endpoint": f"http://{address}"}
        pod = artifacts.pod_with(tmp_path / "pusher", **keys)
        uri = artifacts.run_export(exported, pod, "oci://registry.example.com/team/bot:v1", **place)
        assert fails(bare_pod, uri="oci://registry.example.com/team/bot:v1", **place).reason is Reason.ACCESS_DENIED
        absent = fails(bare_pod, keys=keys, uri="oci://registry.example.com/team/bot:v2", **place)
        assert absent.reason is Reason.MODEL_NOT_FOUND
        by_tag = run(bare_pod, keys=keys, uri="oci://registry.example.com/team/bot:v1", **place)
        assert by_tag.uri == "oci://registry.example.com/team/bot:v1@" + uri.rpartition("@")[2]
        by_digest = run(bare_pod, keys=keys, uri=uri, **place)
    assert (by_tag.digest, by_digest.digest, by_digest.cached) == (by_digest.digest, by_tag.digest, True)
    assert (bare_pod.paths.artifacts.parent / by_tag.path / "adapter_model.safetensors").read_bytes() == WEIGHTS


def test_the_whole_stage_answers_again_and_fetches_again_what_vanished(bare_pod: pods.Pod) -> None:
    in_claim(bare_pod, "bot", files())
    stage_input = {"adapter": {"uri": "pvc://data/bot"}, "pvcAdapterPath": "/claims/adapter"}
    first = bare_pod.succeed(Stage.FETCH, stage_input)
    found = AdapterFetchResult.model_validate(first)
    assert bare_pod.succeed(Stage.FETCH, stage_input) == first
    for path in (bare_pod.paths.artifacts.parent / found.path).iterdir():
        path.unlink()
    again = AdapterFetchResult.model_validate(bare_pod.succeed(Stage.FETCH, stage_input))
    assert (again.digest, is_whole(bare_pod.paths.artifacts.parent / again.path)) == (found.digest, True)
