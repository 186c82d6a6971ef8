"""Stage fetch from a user's claim: what is chosen, and links, which are followed within the claim only."""

import shutil
from pathlib import Path
from typing import Any

import pods
import pytest
from tuneloop_core.stages import FetchInput, Reason, Stage

from tuneloop_trainer import fetch
from tuneloop_trainer.claims import open_claim
from tuneloop_trainer.errors import StageError

ROWS = b'{"text": "one"}\n{"text": "two"}\n'


def test_files_of_a_claim_are_chosen(bare_pod: pods.Pod, tiny: Path) -> None:
    claim = bare_pod.root / "claims"
    shutil.copytree(tiny, claim / "model/tiny")
    for name in ("a.jsonl", "b.jsonl.gz", "c.csv", "notes.md"):
        (claim / "dataset/rows").mkdir(parents=True, exist_ok=True)
        (claim / "dataset/rows" / name).write_bytes(name.encode())
    source = {"uri": "pvc://models/tiny"}
    dataset = {"uri": "pvc://data/rows", "files": ["*.jsonl", "*.gz"]}
    stage_input = FetchInput(owner="FineTuneJob test/job", model=source, dataset=dataset)
    folder = bare_pod.root / "store" / fetch.run(stage_input, bare_pod.paths).dataset_path
    assert {file.name for file in folder.iterdir()} == {"a.jsonl", "b.jsonl.gz", "DIGEST"}
    stage_input = stage_input.model_copy(update={"dataset": {**dataset, "files": ["*.parquet"]}})
    with pytest.raises(StageError, match=r"no file that fits dataset\.files \*\.parquet \(it has a"):
        fetch.run(stage_input, bare_pod.paths)


def test_a_uri_that_leads_out_of_its_claim_is_refused(bare_pod: pods.Pod) -> None:
    claim = bare_pod.root / "claims/model"
    claim.mkdir(parents=True)
    (claim / "out").symlink_to("/etc")
    code, termination = bare_pod.run(Stage.FETCH, {"model": {"uri": "pvc://m/out"}, "pvcModelPath": "/claims/model"})
    assert (code, termination.reason) == (42, "URIRefused")


def from_claims(pod: pods.Pod, tiny: Path, dataset: dict[str, Any]) -> FetchInput:
    """A claim with a model, one with rows, and a secret beside them."""
    shutil.copytree(tiny, pod.paths.claim("model") / "tiny")
    (pod.paths.claim("dataset") / "rows").mkdir(parents=True)
    (pod.root / "secrets/dataset").mkdir(parents=True)
    (pod.root / "secrets/dataset/token").write_text('{"text": "secret"}')
    return FetchInput(owner="o", model={"uri": "pvc://m/tiny"}, dataset={"uri": "pvc://d/rows", **dataset})


@pytest.mark.parametrize(
    ("place", "dataset"),
    [
        ("model/tiny/leak.json", {}),
        ("model/tiny/config.json", {}),
        ("dataset/rows/leak.jsonl", {}),
        ("dataset/rows/leak.jsonl", {"files": ["*.jsonl"]}),
    ],
)
@pytest.mark.parametrize("way", ["secrets/dataset/token", "../secrets/dataset/token"])
def test_a_file_that_is_a_link_out_of_its_claim_is_refused(
    bare_pod: pods.Pod, tiny: Path, place: str, dataset: dict[str, Any], way: str
) -> None:
    stage_input = from_claims(bare_pod, tiny, dataset)
    link = bare_pod.root / "claims" / place
    link.unlink(missing_ok=True)
    link.symlink_to(bare_pod.root / way if way.startswith("secrets") else Path("../..", way))
    with pytest.raises(StageError, match=f"{link.name} is or lies behind a link that leads out of the claim") as caught:
        fetch.run(stage_input, bare_pod.paths)
    assert caught.value.reason is Reason.URI_REFUSED
    assert not [path for path in (bare_pod.root / "store").rglob("*") if path.name == link.name]


def test_links_that_stay_in_a_claim_are_followed_as_a_hub_cache_has_them(bare_pod: pods.Pod, tiny: Path) -> None:
    stage_input = from_claims(bare_pod, tiny, {})
    cache = bare_pod.paths.claim("model") / "models--acme--tiny"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots/abc").mkdir(parents=True)
    for path in tiny.iterdir():
        shutil.copy(path, cache / "blobs" / f"sha-{path.name}")
        (cache / "snapshots/abc" / path.name).symlink_to(f"../../blobs/sha-{path.name}")
    (bare_pod.paths.claim("dataset") / "plain.jsonl").write_bytes(ROWS)
    (bare_pod.paths.claim("dataset") / "rows/train.jsonl").symlink_to("../plain.jsonl")
    plain = fetch.run(stage_input, bare_pod.paths)
    linked = stage_input.model_copy(update={"model": {"uri": "pvc://m/models--acme--tiny/snapshots/abc"}})
    found = fetch.run(linked, bare_pod.paths)
    assert found.model_path == plain.model_path, "the same files are the same model"
    assert (bare_pod.root / "store" / found.dataset_path / "train.jsonl").read_bytes() == ROWS


def test_a_file_exchanged_for_a_link_after_it_was_listed_is_refused(bare_pod: pods.Pod, tiny: Path) -> None:
    from_claims(bare_pod, tiny, {})
    claim = open_claim(bare_pod.paths, "", "pvc://d/rows", "dataset")
    row = claim.place / "inner/train.jsonl"
    row.parent.mkdir()
    row.write_bytes(ROWS)
    (listed,) = claim.files([row])
    (bare_pod.root / "secrets/dataset/train.jsonl").write_text("secret")
    shutil.rmtree(row.parent)
    row.parent.symlink_to(bare_pod.root / "secrets/dataset")
    with pytest.raises(StageError, match="leads out of the claim"):
        claim.copy(listed, bare_pod.root / "copy")
    assert not (bare_pod.root / "copy").exists()
