"""Models from oci://, from a real registry: what an export pushed comes back as a base; refusals in words."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import artifacts
import hubs
import pytest
import stores
from tuneloop_core.stages import FetchInput, FetchResult, Reason

from tuneloop_trainer import fetch, publish
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.exports.registry import MANIFEST_TYPE, Registry, RegistryLogin
from tuneloop_trainer.files import folder_aside, is_whole, seal
from tuneloop_trainer.guard import AddressGuard
from tuneloop_trainer.ocifiles import Artifact, Blob, file_name, model_files, read_manifest
from tuneloop_trainer.paths import Paths

pytestmark = pytest.mark.timeout(1800)  # on a cold machine the servers are built first

HOST = "registry.example.com"
TITLE = "org.opencontainers.image.title"
DIGEST = "sha256:" + "0" * 64


@pytest.fixture
def pod(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path / "pod")
    for key, value in zip(("username", "token"), stores.WRITER, strict=True):
        secret = paths.root / "secrets/model" / key
        secret.parent.mkdir(parents=True, exist_ok=True)
        secret.write_text(value + "\n")
    return paths


def push(registry: str, parent: Path, name: str, files: dict[str, bytes]) -> str:
    """Export files as the artifact of a job; returns the URI with the digest."""
    with folder_aside(parent) as aside:
        for file, data in files.items():
            (aside / file).write_bytes(data)
        target = parent / name.replace(":", "-")
        seal(aside, target)
    username, token = stores.WRITER
    pod = artifacts.pod_with(parent / "publish", username=username, token=token)
    return artifacts.run_export(target, pod, f"oci://{HOST}/team/{name}", endpoint=registry)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "DIGEST"}


def fetched(registry: str, pod: Paths, uri: str, guard: AddressGuard = artifacts.LOOPBACK, **given: Any) -> FetchResult:
    source = {"uri": uri, "endpoint": registry}
    found = fetch.run(FetchInput(owner="FineTuneJob test/job", model=source, **given), pod, guard)
    assert isinstance(found, FetchResult)
    return found


def refused(registry: str, pod: Paths, uri: str, **given: Any) -> StageError:
    with pytest.raises(StageError) as caught:
        fetched(registry, pod, uri, **given)
    assert not list(pod.models.glob("oci/*")), "something was left behind"
    return caught.value


def test_a_model_that_a_job_exported_is_the_base_of_the_next(
    registry: str, pod: Paths, tiny: Path, tmp_path: Path
) -> None:
    model = files_of(tiny)
    extra = {
        "README.md": b"# card",
        "report.html": b"<p>",
        "pytorch_model.bin": b"pickle",
        "run.py": b"raise SystemExit",
    }
    pushed = push(registry, tmp_path, "tiny:v1", {**model, **extra})
    result = fetched(registry, pod, f"oci://{HOST}/team/tiny:v1")
    digest = pushed.rpartition("@")[2]
    assert (result.model_uri, result.model_commit, result.cached) == (pushed, digest, False)
    assert result.model_path == f"models/oci/{digest.removeprefix('sha256:')}"
    folder = pod.models.parent / result.model_path
    assert is_whole(folder)
    assert files_of(folder) == model
    assert result.shape is not None
    assert fetched(registry, pod, f"oci://{HOST}/team/tiny@{digest}").cached


def test_a_tag_that_moved_is_another_model_and_a_digest_stays(
    registry: str, pod: Paths, tiny: Path, tmp_path: Path
) -> None:
    first = push(registry, tmp_path / "1", "moving:v1", files_of(tiny))
    assert fetched(registry, pod, f"oci://{HOST}/team/moving:v1").model_uri == first
    second = push(registry, tmp_path / "2", "moving:v1", {**files_of(tiny), "vocab.txt": b"more"})
    assert fetched(registry, pod, f"oci://{HOST}/team/moving:v1").model_uri == second
    assert fetched(registry, pod, first).model_commit == first.rpartition("@")[2]


def test_what_cannot_be_fetched_is_told(registry: str, pod: Paths, tiny: Path, tmp_path: Path) -> None:
    model = files_of(tiny)
    push(registry, tmp_path, "good:v1", model)
    push(registry, tmp_path, "pickle:v1", {"config.json": model["config.json"], "pytorch_model.bin": b"pickle"})
    push(registry, tmp_path, "adapter:v1", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"a"})
    own = json.dumps({**json.loads(model["config.json"]), "auto_map": {"AutoModel": "run.Model"}}).encode()
    push(registry, tmp_path, "own:v1", {**model, "config.json": own})
    for name, given, reason, words in (
        ("good:v2", {}, Reason.MODEL_NOT_FOUND, "MANIFEST_UNKNOWN"),
        ("absent", {}, Reason.MODEL_NOT_FOUND, "Check model.uri"),
        (
            "pickle:v1",
            {},
            Reason.MODEL_UNSUPPORTED,
            "(it has DIGEST, config.json, pytorch_model.bin). Push the model's",
        ),
        ("adapter:v1", {}, Reason.MODEL_UNSUPPORTED, "a ModelDeployment serves it by adapters[].from.uri"),
        ("own:v1", {}, Reason.MODEL_UNSUPPORTED, "brings code of its own"),
        ("good:v1", {"max_bytes": 10}, Reason.MODEL_UNSUPPORTED, "hub.maxBytes of this installation allows"),
        ("good:v1", {"guard": AddressGuard()}, Reason.URI_REFUSED, "loopback"),
    ):
        error = refused(registry, pod, f"oci://{HOST}/team/{name}", **given)
        assert (error.reason, words in error.message) == (reason, True), error.message


@pytest.mark.parametrize("secret", ["", "wrong-word"])
def test_without_the_right_login_nothing_is_read(
    registry: str, pod: Paths, tiny: Path, tmp_path: Path, secret: str
) -> None:
    push(registry, tmp_path, "hidden:v1", files_of(tiny))
    (pod.root / "secrets/model/token").write_text(secret)
    error = refused(registry, pod, f"oci://{HOST}/team/hidden:v1")
    assert error.reason is Reason.ACCESS_DENIED
    assert "check the keys 'token' and 'username' of the Secret in model.credentialsSecret" in error.message
    assert "wrong-word" not in error.message


def test_a_store_without_room_is_told_with_what_it_needs(
    registry: str, pod: Paths, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = files_of(tiny)
    push(registry, tmp_path, "large:v1", model)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    error = refused(registry, pod, f"oci://{HOST}/team/large:v1")
    assert (error.reason, error.needed_bytes) == (Reason.STORE_FULL, sum(map(len, model.values())))


def test_a_login_that_runs_out_on_the_way_is_renewed(tmp_path: Path) -> None:
    blobs = {f"sha256:{hashlib.sha256(data).hexdigest()}": data for data in (b"one", b"two")}
    granted: list[str] = []
    used: set[str] = set()

    def answer(_method: str, path: str, headers: dict[str, str]) -> hubs.Answer:
        if path.startswith("/token"):
            granted.append(f"token-{len(granted)}")
            return 200, {}, json.dumps({"token": granted[-1]}).encode()
        word = headers.get("authorization", "").removeprefix("Bearer ")
        if word in granted and word not in used:
            used.add(word)  # good for one request
            return 200, {}, blobs.get(path.rpartition("/")[2], b"{}")
        return 401, {"WWW-Authenticate": f'Bearer realm="http://{headers["host"]}/token"'}, b""

    with hubs.serving(answer) as base:
        source = Registry(base, "a/b", RegistryLogin("me", "word"), artifacts.LOOPBACK, actions="pull")
        source.manifest("v1")
        for digest, data in blobs.items():
            source.pull_blob(digest, len(data), tmp_path / "file")
            assert (tmp_path / "file").read_bytes() == data


def test_the_storage_behind_a_registry_gets_no_login(tmp_path: Path) -> None:
    seen: list[str] = []

    def storage(_method: str, _path: str, headers: dict[str, str]) -> hubs.Answer:
        seen.append(headers.get("authorization", ""))
        return 401, {"WWW-Authenticate": f'Bearer realm="http://{headers["host"]}/token"'}, b""

    with hubs.serving(storage) as elsewhere:

        def answer(_method: str, path: str, headers: dict[str, str]) -> hubs.Answer:
            if "authorization" not in headers:
                return 401, {"WWW-Authenticate": "Basic"}, b""
            return (302, {"Location": f"{elsewhere}/blob"}, b"") if "/blobs/" in path else (200, {}, b"{}")

        with hubs.serving(answer) as base:
            source = Registry(base, "a/b", RegistryLogin("me", "word"), artifacts.LOOPBACK, actions="pull")
            source.manifest("v1")
            with pytest.raises(Exception, match="said 401"):
                source.pull_blob(DIGEST, 1, tmp_path / "file")
    assert seen == [""]


@pytest.mark.parametrize(
    ("uri", "pinned"),
    [
        (f"oci://{HOST}/a:v1", {"uri": f"oci://{HOST}/a:v1@{DIGEST}"}),
        ("hf://org/name", {"revision": "abc"}),
        ("s3://bucket/a", {}),
        ("pvc://claim/a", {}),
    ],
)
def test_the_job_in_the_manifest_names_the_model_that_was_fetched(uri: str, pinned: dict[str, str]) -> None:
    commit = "abc" if uri.startswith("hf://") else DIGEST
    found = FetchResult(model_uri=f"{uri}@{commit}", model_path="models/a", model_commit=commit, model_bytes=1)
    assert publish._pinned(uri, found) == pinned


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        ({"annotations": {TITLE: "config.json"}}, "config.json"),
        ({"annotations": {TITLE: "model", "io.deis.oras.content.unpack": "true"}}, ""),
        (
            {
                "mediaType": "application/vnd.cncf.model.weight.v1.raw",
                "annotations": {"org.cncf.model.filepath": "model.safetensors"},
            },
            "model.safetensors",
        ),
        (
            {
                "mediaType": "application/vnd.cncf.model.weight.v1.tar",
                "annotations": {"org.cncf.model.filepath": "model.safetensors"},
            },
            "",
        ),
        ({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}, ""),
        ({"annotations": None}, ""),
    ],
)
def test_a_layer_is_a_file_by_what_its_pusher_wrote(layer: dict[str, Any], name: str) -> None:
    assert file_name(layer) == name


def test_a_container_image_is_told_from_a_model() -> None:
    image = read_manifest(
        "oci://r/a@x", "x", {"layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}]}
    )
    with pytest.raises(
        StageError, match=r"it has 1 layers that are archives or have no title\)\. Push the model's files"
    ):
        model_files(image)
    below = Artifact(
        "oci://r/a@x", "x", {"../model.safetensors": Blob(DIGEST, 1), "b/model.safetensors": Blob(DIGEST, 1)}
    )
    with pytest.raises(StageError, match="at its root"):
        model_files(below)


@pytest.mark.parametrize(
    "document",
    [
        {"manifests": [{"digest": DIGEST}]},
        {"layers": None},
        {"layers": ["a"]},
        {"layers": [{"annotations": {TITLE: "config.json"}}]},
        {"layers": [{"annotations": {TITLE: "config.json"}, "digest": "../../x", "size": 1}]},
        {"layers": [{"annotations": {TITLE: "config.json"}, "digest": DIGEST, "size": "many"}]},
    ],
)
def test_what_is_no_artifact_is_refused_in_words(document: dict[str, Any]) -> None:
    def answer(_method: str, _path: str, headers: dict[str, str]) -> hubs.Answer:
        assert MANIFEST_TYPE in headers["accept"]
        return 200, {}, json.dumps(document).encode()

    with hubs.serving(answer) as base, pytest.raises(StageError, match="names no artifact with layers") as caught:
        fetched(base, Paths(Path("/nowhere")), f"oci://{HOST}/a:v1")
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED
