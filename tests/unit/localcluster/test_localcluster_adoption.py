"""Which folders of buildah's store are an image's layers, and where a snapshot's files belong."""

import json
from pathlib import Path
from typing import Any

import pytest

from tuneloop_localcluster.adoption import Layer, stored_layers
from tuneloop_localcluster.runtime import snapshot_folder

IMAGES = [{"names": ["localhost/tuneloop/app:1", "other"], "layer": "top"}, {"names": None, "layer": "base"}]
LAYERS = [
    {"id": "top", "parent": "base", "diff-digest": "sha256:t"},
    {"id": "base", "diff-digest": "sha256:b"},
    {"id": "foreign", "diff-digest": "sha256:f"},
]


def write(store: Path, images: Any, layers: Any) -> None:
    for folder, name, content in (("overlay-images", "images.json", images), ("overlay-layers", "layers.json", layers)):
        (store / folder).mkdir()
        (store / folder / name).write_text(json.dumps(content))


def test_layers_are_found_from_the_lowest_up(tmp_path: Path) -> None:
    write(tmp_path, IMAGES, LAYERS)
    assert stored_layers(tmp_path, "localhost/tuneloop/app:1") == [
        Layer("sha256:b", tmp_path / "overlay" / "base" / "diff"),
        Layer("sha256:t", tmp_path / "overlay" / "top" / "diff"),
    ]
    assert stored_layers(tmp_path, "localhost/tuneloop/app:2") == []


@pytest.mark.parametrize(
    ("images", "layers"),
    [(IMAGES, LAYERS[:1]), ([{"names": ["localhost/tuneloop/app:1"]}], LAYERS), (IMAGES, [{"name": "top"}])],
    ids=["parent missing", "no layer", "other fields"],
)
def test_a_store_of_another_form_is_left_alone(tmp_path: Path, images: Any, layers: Any) -> None:
    write(tmp_path, images, layers)
    assert stored_layers(tmp_path, "localhost/tuneloop/app:1") == []


def test_no_store_is_no_layers(tmp_path: Path) -> None:
    assert stored_layers(tmp_path, "localhost/tuneloop/app:1") == []


@pytest.mark.parametrize(
    ("mount", "expected"),
    [
        ({"Type": "bind", "Source": "/s/1/fs", "Options": ["rw", "rbind"]}, "/s/1/fs"),
        (
            {"Type": "overlay", "Source": "overlay", "Options": ["workdir=/s/2/w", "upperdir=/s/2/fs", "lowerdir=/a"]},
            "/s/2/fs",
        ),
    ],
)
def test_the_folder_of_a_snapshot(mount: dict[str, Any], expected: str) -> None:
    assert snapshot_folder(mount) == Path(expected)
