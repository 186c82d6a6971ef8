"""Which layers move into containerd, and in what archive."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

from tuneloop_localcluster import transfer
from tuneloop_localcluster.runtime import stray_aliases

A, B, C = ("sha256:" + letter * 64 for letter in "abc")


def digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def test_chain_ids_follow_the_oci_image_spec() -> None:
    assert transfer.chain_ids([]) == []
    assert transfer.chain_ids([A]) == [A]
    ab = digest(f"{A} {B}")
    assert transfer.chain_ids([A, B, C]) == [A, ab, digest(f"{ab} {C}")]


def test_a_layer_is_held_only_on_top_of_its_own_base() -> None:
    assert transfer.held_layers([A, B], {A, digest(f"{A} {B}")}) == [A, B]
    assert transfer.held_layers([A, B], {A, B}) == [A]
    assert transfer.held_layers([C, B], {A, digest(f"{A} {B}")}) == []


def test_the_archive_is_named_and_eats_its_files(tmp_path: Path) -> None:
    (tmp_path / "blobs" / "sha256").mkdir(parents=True)
    (tmp_path / "blobs" / "sha256" / "1").write_bytes(b"layer")
    index = tmp_path / "index.json"
    index.write_text(
        json.dumps({"manifests": [{"digest": "d", "annotations": {"org.opencontainers.image.ref.name": "x"}}]})
    )
    transfer.name_image(index, "localhost/tuneloop/app:1")
    out = io.BytesIO()
    transfer.pack(tmp_path, out)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        assert archive.getnames() == ["blobs/sha256/1", "index.json"]
        file = archive.extractfile("index.json")
        assert file is not None
        annotations = json.load(file)["manifests"][0]["annotations"]
    assert annotations == {"io.containerd.image.name": "localhost/tuneloop/app:1"}


def test_aliases_without_a_named_image_are_stray() -> None:
    table = f"""REF TYPE DIGEST SIZE PLATFORMS LABELS
localhost/tuneloop/app:2 application/json {A} 1.0 MiB linux/amd64 -
{C} application/json {A} 1.0 MiB linux/amd64 -
{B} application/json {B} 1.0 MiB linux/amd64 -
"""
    assert stray_aliases(table) == [B]
