"""Models from s3://, from a real S3 server: all files, once, in one version; refusals in words."""

from pathlib import Path
from typing import Any

import artifacts
import pytest
import stores
from tuneloop_core.stages import FetchInput, FetchResult, Reason

from tuneloop_trainer import fetch, s3files
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.files import is_whole
from tuneloop_trainer.paths import Paths

pytestmark = pytest.mark.timeout(1800)  # on a cold machine the servers are built first

URI = "s3://models/team/tiny"


@pytest.fixture
def model(s3_server: stores.S3Server, tiny: Path) -> Path:
    """The tiny model, put right below the prefix; a program beside it, and a file further down."""
    for path in sorted(tiny.iterdir()):
        put(s3_server, f"team/tiny/{path.name}", path.read_bytes())
    put(s3_server, "team/tiny/run.py", b"raise SystemExit")
    put(s3_server, "team/tiny/optimizer/model.safetensors", b"")
    return tiny


@pytest.fixture
def pod(s3_server: stores.S3Server, tmp_path: Path) -> Paths:
    paths = Paths(tmp_path / "pod")
    for key, value in (("accessKeyId", s3_server.access_key_id), ("secretAccessKey", s3_server.secret_access_key)):
        secret = paths.root / "secrets/model" / key
        secret.parent.mkdir(parents=True, exist_ok=True)
        secret.write_text(value)
    return paths


def put(s3_server: stores.S3Server, key: str, data: bytes) -> None:
    artifacts.s3_client_of(s3_server).put_object(Bucket="models", Key=key, Body=data)


def fetched(s3_server: stores.S3Server, pod: Paths, uri: str = URI, **given: Any) -> FetchResult:
    source = {"uri": uri, "endpoint": s3_server.endpoint}
    return fetch.run(FetchInput(owner="FineTuneJob test/job", model=source, **given), pod, artifacts.LOOPBACK)


def test_a_model_arrives_whole_once_and_again_when_it_changes(
    s3_server: stores.S3Server, pod: Paths, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3files, "RANGE_BYTES", 100_000)  # several ranges a file
    result = fetched(s3_server, pod)
    folder = pod.models.parent / result.model_path
    assert is_whole(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "DIGEST"} == {
        path.name: path.read_bytes() for path in model.iterdir()
    }
    assert result.model_uri == f"{URI}@{result.model_commit}"
    assert result.shape is not None
    assert fetched(s3_server, pod, f"{URI}/").cached
    put(s3_server, "team/tiny/config.json", (model / "config.json").read_bytes() + b"\n")
    again = fetched(s3_server, pod)
    assert (again.cached, again.model_commit == result.model_commit) == (False, False)


def test_a_stranger_a_wrong_place_and_a_cap_are_told(s3_server: stores.S3Server, pod: Paths, model: Path) -> None:
    with pytest.raises(StageError, match=r"nothing lies below this prefix. Check model.uri") as missing:
        fetched(s3_server, pod, "s3://models/team/other")
    with pytest.raises(StageError, match="NoSuchBucket") as bucket:
        fetched(s3_server, pod, "s3://elsewhere/team")
    with pytest.raises(StageError, match=r"hub.maxBytes of this installation allows") as large:
        fetched(s3_server, pod, max_bytes=10)
    (pod.root / "secrets/model/secretAccessKey").write_text("wrong")
    with pytest.raises(StageError, match="check accessKeyId and secretAccessKey") as denied:
        fetched(s3_server, pod)
    assert [each.value.reason for each in (missing, bucket, large, denied)] == [
        Reason.MODEL_NOT_FOUND,
        Reason.MODEL_NOT_FOUND,
        Reason.MODEL_UNSUPPORTED,
        Reason.ACCESS_DENIED,
    ]
    assert "wrong" not in denied.value.message


def test_an_upload_that_is_not_finished_is_told(s3_server: stores.S3Server, pod: Paths, tiny: Path) -> None:
    for path in tiny.iterdir():
        put(s3_server, f"half/{path.name}", path.read_bytes())
    put(s3_server, "half/model.safetensors.index.json", b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    with pytest.raises(StageError, match=r"lacks model-00001-of-00002.safetensors, which its") as error:
        fetched(s3_server, pod, "s3://models/half")
    assert error.value.reason is Reason.MODEL_NOT_FOUND
    assert not list((pod.models / "s3").glob("*"))
