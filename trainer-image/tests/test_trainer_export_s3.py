"""Exports to s3:// against a real S3 server."""

import socket
from pathlib import Path
from typing import Any

import artifacts
import pytest
import stores
from tuneloop_core.stages import Reason

from tuneloop_trainer.download import S3Credentials
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.exports import s3 as s3_export
from tuneloop_trainer.guard import AddressGuard
from tuneloop_trainer.paths import Paths
from tuneloop_trainer.s3 import s3_client

pytestmark = pytest.mark.timeout(1800)  # on a cold machine the servers are built first

PART = 5 * artifacts.MIB
URI = "s3://models/team/a=b+c@d/"


@pytest.fixture
def pod(s3_server: stores.S3Server, tmp_path: Path) -> Paths:
    return artifacts.pod_with(
        tmp_path / "pod", accessKeyId=s3_server.access_key_id, secretAccessKey=s3_server.secret_access_key
    )


def objects(s3_server: stores.S3Server, exported: str) -> dict[str, bytes]:
    """What an S3 client finds below an exported URI."""
    client, prefix = artifacts.s3_client_of(s3_server), exported.removeprefix("s3://models/") + "/"
    listed = client.list_objects_v2(Bucket="models", Prefix=prefix).get("Contents", [])
    found = {item["Key"]: client.get_object(Bucket="models", Key=item["Key"])["Body"].read() for item in listed}
    return {key.removeprefix(prefix): data for key, data in found.items()}


def test_every_file_arrives_and_a_second_run_sends_nothing(
    s3_server: stores.S3Server,
    pod: Paths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(s3_export, "PART_BYTES", PART)
    caplog.set_level("INFO", "tuneloop")
    artifact = artifacts.sealed_artifact(tmp_path, weights=bytes(range(256)) * 45_000)  # 11.5 MB: three parts
    exported = artifacts.run_export(artifact, pod, URI, endpoint=s3_server.endpoint)
    assert exported == f"{URI}{artifact.name}"
    assert objects(s3_server, exported) == artifacts.contents(artifact)
    weights = f"{exported.removeprefix('s3://models/')}/adapter_model.safetensors"
    assert artifacts.s3_client_of(s3_server).head_object(Bucket="models", Key=weights)["ETag"].endswith('-3"')
    assert caplog.messages[-2].endswith("manifest.json")

    caplog.clear()
    assert artifacts.run_export(artifact, pod, URI, endpoint=s3_server.endpoint) == exported
    assert not [words for words in caplog.messages if words.startswith("uploaded")]
    assert len([words for words in caplog.messages if "there already" in words]) == 6


KILLED = """
import artifacts
from pathlib import Path
from tuneloop_trainer.exports import s3
from tuneloop_trainer.paths import Paths
s3.PART_BYTES = 5 * artifacts.MIB
real = s3._Bucket._put_part
def killed(self, upload, number, data):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, upload, number, data)
s3._Bucket._put_part = killed
artifacts.run_export(Path(sys.argv[1]), Paths(Path(sys.argv[2])), sys.argv[3], endpoint=sys.argv[4])
"""


def test_a_kill_between_parts_leaves_no_manifest_and_the_next_run_mends_it(
    s3_server: stores.S3Server, pod: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_export, "PART_BYTES", PART)
    artifact = artifacts.sealed_artifact(tmp_path, weights=b"killed" * 2_000_000)
    artifacts.run_until_killed(KILLED, str(artifact), str(pod.root), URI, s3_server.endpoint)
    half = objects(s3_server, f"{URI}{artifact.name}")
    assert "manifest.json" not in half
    assert "adapter_model.safetensors" not in half
    client = artifacts.s3_client_of(s3_server)
    assert len(client.list_multipart_uploads(Bucket="models").get("Uploads", [])) == 1

    exported = artifacts.run_export(artifact, pod, URI, endpoint=s3_server.endpoint)
    assert objects(s3_server, exported) == artifacts.contents(artifact)
    assert not client.list_multipart_uploads(Bucket="models").get("Uploads", [])


def test_an_object_of_another_content_is_replaced(s3_server: stores.S3Server, pod: Paths, tmp_path: Path) -> None:
    artifact = artifacts.sealed_artifact(tmp_path, weights=b"replaced")
    key = f"{URI.removeprefix('s3://models/')}{artifact.name}/adapter_model.safetensors"
    artifacts.s3_client_of(s3_server).put_object(Bucket="models", Key=key, Body=b"tampere!")
    exported = artifacts.run_export(artifact, pod, URI, endpoint=s3_server.endpoint)
    assert objects(s3_server, exported) == artifacts.contents(artifact)


@pytest.mark.parametrize(
    ("uri", "secret", "said", "change"),
    [
        (
            "s3://missing-bucket/a",
            {},
            "NoSuchBucket",
            "Make the bucket missing-bucket",
        ),
        (URI, {"secretAccessKey": "wrong"}, "SignatureDoesNotMatch", "Check secretAccessKey"),
        (URI, {"accessKeyId": "nobody"}, "InvalidAccessKeyId", "Check accessKeyId"),
        (URI, {"accessKeyId": "stranger", "secretAccessKey": "stranger-word"}, "AccessDenied", "s3:PutObject"),
    ],
)
def test_refusals_are_named_and_a_mended_secret_heals(
    s3_server: stores.S3Server, pod: Paths, tmp_path: Path, uri: str, secret: dict[str, str], said: str, change: str
) -> None:
    artifact = artifacts.sealed_artifact(tmp_path, weights=said.encode())
    artifacts.pod_with(pod.root, **secret)
    with pytest.raises(StageError) as caught:
        artifacts.run_export(artifact, pod, uri, endpoint=s3_server.endpoint, credentialsSecret="keys")
    assert (caught.value.reason, caught.value.exit_code) == (Reason.EXPORT_FAILED, 42)
    message = caught.value.message
    assert all(part in message for part in (uri, said, change, "Secret keys", "kept in the store")), message
    assert "wrong" not in message
    assert "stranger-word" not in message

    artifacts.pod_with(pod.root, accessKeyId=s3_server.access_key_id, secretAccessKey=s3_server.secret_access_key)
    mended = artifacts.run_export(artifact, pod, URI, endpoint=s3_server.endpoint)
    assert objects(s3_server, mended) == artifacts.contents(artifact)


def test_a_server_that_is_away_counts_as_a_try(pod: Paths, tmp_path: Path) -> None:
    artifact = artifacts.sealed_artifact(tmp_path)
    with pytest.raises(StageError, match=r"Check output\.endpoint") as caught:
        artifacts.run_export(artifact, pod, URI, endpoint=f"http://{stores.free_address()}")
    assert (caught.value.reason, caught.value.exit_code) == (Reason.EXPORT_FAILED, 75)


def test_an_endpoint_on_the_pod_itself_is_refused(s3_server: stores.S3Server, pod: Paths, tmp_path: Path) -> None:
    artifact = artifacts.sealed_artifact(tmp_path, weights=b"never sent")
    named = s3_server.endpoint.replace("127.0.0.1", "storage.example.com")
    guard = AddressGuard(resolver=lambda _host, _port: ["127.0.0.1"])
    with pytest.raises(StageError, match="loopback") as caught:
        artifacts.run_export(artifact, pod, URI, guard=guard, endpoint=named)
    assert caught.value.reason is Reason.URI_REFUSED
    assert objects(s3_server, f"{URI}{artifact.name}") == {}


def test_no_metadata_service_is_asked_for_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection outside the guarded client")

    monkeypatch.setattr(socket, "create_connection", refuse)
    s3_client("http://storage.example.com", S3Credentials(), AddressGuard())
