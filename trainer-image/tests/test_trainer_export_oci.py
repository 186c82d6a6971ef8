"""Exports to oci:// against a real registry."""

import hashlib
import json
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import artifacts
import httpx2
import hubs
import pytest
import stores
from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.exports import registry as registry_module
from tuneloop_trainer.exports.oci import ARTIFACT_TYPE
from tuneloop_trainer.exports.registry import MANIFEST_TYPE, Registry, RegistryLogin
from tuneloop_trainer.guard import AddressGuard
from tuneloop_trainer.paths import Paths

pytestmark = pytest.mark.timeout(1800)  # on a cold machine the servers are built first

REPOSITORY = "registry.example.com/team/bot"
TITLE = "org.opencontainers.image.title"


@pytest.fixture
def pod(tmp_path: Path) -> Paths:
    username, token = stores.WRITER
    return artifacts.pod_with(tmp_path / "pod", username=username, token=token)


def get(registry: str, path: str) -> httpx2.Response:
    return httpx2.get(f"{registry}/v2/team/bot/{path}", headers={"Accept": MANIFEST_TYPE}, auth=stores.WRITER)


def pulled(registry: str, reference: str) -> dict[str, bytes]:
    """The files of an artifact as ``oras pull`` would write them, every digest checked."""
    answer = get(registry, f"manifests/{reference}")
    assert answer.status_code == 200
    document = answer.json()
    assert document["artifactType"] == ARTIFACT_TYPE
    files = {}
    for layer in document["layers"]:
        data = get(registry, f"blobs/{layer['digest']}").content
        assert (len(data), "sha256:" + hashlib.sha256(data).hexdigest()) == (layer["size"], layer["digest"])
        files[layer["annotations"][TITLE]] = data
    return files


def test_every_file_can_be_pulled_by_tag_and_by_digest(registry: str, pod: Paths, tmp_path: Path) -> None:
    artifact = artifacts.sealed_artifact(tmp_path, weights=bytes(range(256)) * 40_000)
    exported = artifacts.run_export(artifact, pod, f"oci://{REPOSITORY}:v1", endpoint=registry)
    name, _, digest = exported.partition("@")
    assert name == f"oci://{REPOSITORY}:v1"
    assert pulled(registry, "v1") == pulled(registry, digest) == artifacts.contents(artifact)


def test_without_a_tag_it_is_the_short_digest_and_a_second_run_sends_nothing(
    registry: str, pod: Paths, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tuneloop")
    artifact = artifacts.sealed_artifact(tmp_path, weights=b"short tag")
    exported = artifacts.run_export(artifact, pod, f"oci://{REPOSITORY}", endpoint=registry)
    assert f":{artifact.name[:12]}@sha256:" in exported
    assert "adapter_model.safetensors sent" in caplog.messages
    caplog.clear()
    assert artifacts.run_export(artifact, pod, f"oci://{REPOSITORY}", endpoint=registry) == exported
    assert not [words for words in caplog.messages if words.endswith("sent")]


def test_a_tag_moves_in_one_piece(registry: str, pod: Paths, tmp_path: Path) -> None:
    for weights in (b"first", b"second"):
        artifact = artifacts.sealed_artifact(tmp_path, weights=weights)
        artifacts.run_export(artifact, pod, f"oci://{REPOSITORY}:moving", endpoint=registry)
        assert pulled(registry, "moving") == artifacts.contents(artifact)


KILLED = """
import artifacts
from pathlib import Path
from tuneloop_trainer.exports.registry import Registry
from tuneloop_trainer.paths import Paths
real, sent = Registry.put_blob, []
def killed(self, digest, size, content):
    sent.append(digest)
    if len(sent) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, digest, size, content)
Registry.put_blob = killed
artifacts.run_export(Path(sys.argv[1]), Paths(Path(sys.argv[2])), sys.argv[3], endpoint=sys.argv[4])
"""


def test_a_kill_between_files_leaves_nothing_to_pull(registry: str, pod: Paths, tmp_path: Path) -> None:
    artifact = artifacts.sealed_artifact(tmp_path, weights=b"killed")
    arguments = (f"oci://{REPOSITORY}:killed", registry)
    artifacts.run_until_killed(KILLED, str(artifact), str(pod.root), *arguments)
    assert get(registry, "manifests/killed").status_code == 404
    artifacts.run_export(artifact, pod, arguments[0], endpoint=arguments[1])
    assert pulled(registry, "killed") == artifacts.contents(artifact)


@pytest.mark.parametrize("secret", [{"token": "wrong"}, {"token": ""}, {"username": "nobody"}])
def test_wrong_credentials_are_named_and_never_shown(
    registry: str, pod: Paths, tmp_path: Path, secret: dict[str, str]
) -> None:
    artifact = artifacts.sealed_artifact(tmp_path)
    artifacts.pod_with(pod.root, **secret)
    with pytest.raises(StageError) as caught:
        artifacts.run_export(artifact, pod, f"oci://{REPOSITORY}:v2", endpoint=registry, credentialsSecret="push")
    assert (caught.value.reason, caught.value.exit_code) == (Reason.EXPORT_FAILED, 42)
    message = caught.value.message
    assert all(part in message for part in (f"oci://{REPOSITORY}:v2", "UNAUTHORIZED", "username and token", "push"))
    assert "wrong" not in message.replace("missing or wrong", "")


def test_addresses_are_checked(registry: str, pod: Paths, tmp_path: Path) -> None:
    artifact = artifacts.sealed_artifact(tmp_path)
    with pytest.raises(StageError, match="loopback") as caught:
        artifacts.run_export(artifact, pod, f"oci://{REPOSITORY}:v3", guard=AddressGuard(), endpoint=registry)
    assert caught.value.reason is Reason.URI_REFUSED


def test_a_registry_without_tls_needs_an_endpoint(registry: str, pod: Paths, tmp_path: Path) -> None:
    artifact = artifacts.sealed_artifact(tmp_path)
    uri = f"oci://{registry.removeprefix('http://').replace('127.0.0.1', 'localhost')}/team/bot:v4"
    with pytest.raises(StageError, match="did not answer") as caught:
        artifacts.run_export(artifact, pod, uri)
    assert caught.value.exit_code == 75


def test_a_token_service_is_asked_with_the_credentials_and_the_registry_with_its_token() -> None:
    seen: list[tuple[str, str, str]] = []

    def answer(method: str, path: str, headers: dict[str, str]) -> hubs.Answer:
        seen.append((method, path, headers.get("authorization", "")))
        if path.startswith("/token"):
            return 200, {}, json.dumps({"token": "granted"}).encode()
        if headers.get("authorization") == "Bearer granted":
            return 200, {}, b""
        challenge = f'Bearer realm="http://{headers["host"]}/token",service="tests",scope="repository:a/b:pull"'
        return 401, {"WWW-Authenticate": challenge}, b""

    with hubs.serving(answer) as base:
        assert not Registry(base, "a/b", RegistryLogin("me", "word"), artifacts.LOOPBACK).put_blob(
            "sha256:0", 0, lambda: iter(())
        )
    asked = next(path for _, path, _ in seen if path.startswith("/token"))
    assert parse_qs(urlsplit(asked).query) == {"service": ["tests"], "scope": ["repository:a/b:pull,push"]}
    logins = [login.split()[0] if login else "" for _, _, login in seen]
    assert logins == ["", "Basic", "Bearer"]


def test_credentials_are_not_sent_to_a_foreign_service_without_tls() -> None:
    def answer(_method: str, _path: str, _headers: dict[str, str]) -> hubs.Answer:
        return 401, {"WWW-Authenticate": 'Bearer realm="http://evil.example.com/token"'}, b""

    with hubs.serving(answer) as base:
        registry = Registry(base, "a/b", RegistryLogin("me", "word"), artifacts.LOOPBACK)
        with pytest.raises(registry_module.ExportError, match="no TLS"):
            registry.put_blob("sha256:0", 0, lambda: iter(()))


@pytest.mark.parametrize("realm", ["http://registry.example.com/token", "http://other.example.com/token", "ftp://x/y"])
def test_a_registry_with_tls_gets_no_token_service_without(realm: str) -> None:
    registry = Registry("https://registry.example.com", "a/b", RegistryLogin("me", "word"), AddressGuard())
    challenge = httpx2.Response(401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'})
    with pytest.raises(registry_module.ExportError, match="no TLS"):
        registry._authorize(challenge)


@pytest.mark.parametrize(
    ("location", "place"),
    [
        ("/v2/a/b/blobs/uploads/1?state=x", "https://registry.example.com/v2/a/b/blobs/uploads/1?state=x"),
        ("http://registry.example.com/v2/a/b/blobs/uploads/1", "https://registry.example.com/v2/a/b/blobs/uploads/1"),
        ("https://storage.example.com/1?signature=y", "https://storage.example.com/1?signature=y"),
    ],
)
def test_an_upload_goes_on_where_the_registry_says_but_never_without_its_tls(location: str, place: str) -> None:
    registry = Registry("https://registry.example.com", "a/b", RegistryLogin("me", "word"), AddressGuard())
    begun = httpx2.Request("POST", "https://registry.example.com/v2/a/b/blobs/uploads/")
    assert registry._upload_place(httpx2.Response(202, headers={"Location": location}, request=begun)) == place
