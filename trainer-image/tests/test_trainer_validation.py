"""Held-out files that are named: fetched beside those to train on, checked as a side of their own, never trained on."""

import json
import shutil
from pathlib import Path
from typing import Any

import hubs
import pods
import pytest
from tuneloop_core.stages import FetchInput, FetchResult, Reason, Stage

from tuneloop_trainer import fetch
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.rowfiles import RowFiles


def rows(first: int, count: int) -> bytes:
    texts = (
        {"prompt": f"What is {number}?", "completion": f"It is {number}."} for number in range(first, first + count)
    )
    return "".join(json.dumps(each) + "\n" for each in texts).encode()


FILES = {
    "2026-09/a.jsonl": rows(0, 10),
    "2026-09/b.jsonl": rows(10, 10),
    "2026-10/a.jsonl": rows(20, 6),
    "validation.jsonl": rows(100, 3),
}
"""Of a claim, below rows/."""


@pytest.fixture
def pod(bare_pod: pods.Pod, tiny: Path) -> pods.Pod:
    shutil.copytree(tiny, bare_pod.paths.claim("model") / "tiny")
    shutil.copytree(tiny, bare_pod.paths.model, dirs_exist_ok=True)
    for name, data in FILES.items():
        put(bare_pod, "dataset", f"rows/{name}", data)
    for name in ("tests/test-0.jsonl", "two/a.jsonl", "two/b-test.jsonl"):
        put(bare_pod, "dataset", name, rows(300, 2))
    put(bare_pod, "validation", "held-out/quiz.jsonl", rows(200, 4))
    put(bare_pod, "validation", "held-out/notes.md", b"#")
    return bare_pod


def put(pod: pods.Pod, claim: str, name: str, data: bytes) -> None:
    path = pod.paths.claim(claim) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def fetched(pod: pods.Pod, uri: str = "pvc://data/rows", **dataset: Any) -> FetchResult:
    given = FetchInput(owner="o", model={"uri": "pvc://m/tiny"}, dataset={"uri": uri, **dataset})
    return fetch.run(given, pod.paths)


def names(pod: pods.Pod, result: FetchResult) -> list[str]:
    folder = pod.root / "store" / result.dataset_path
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != "DIGEST")


def checked(pod: pods.Pod, uri: str = "pvc://data/rows", **dataset: Any) -> tuple[int, Any]:
    """Fetch, mount, check: the exit code and the last words."""
    folder = pod.root / "store" / fetched(pod, uri, **dataset).dataset_path
    shutil.rmtree(pod.paths.dataset)
    shutil.rmtree(pod.paths.work)  # of another job each time
    shutil.copytree(folder, pod.paths.dataset)
    return pod.run(Stage.CHECK, {"dataset": {"uri": uri, **dataset}, "method": {}, "training": pods.TRAINING})


def report(pod: pods.Pod) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((pod.paths.work / "check/dataset-report.json").read_text())
    return found


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (
            {"validation": {"files": ["2026-10/*"]}},
            ["train/2026-09/a.jsonl", "train/2026-09/b.jsonl", "validation/2026-10/a.jsonl"],
        ),
        (
            {"files": ["2026-*/a.jsonl"], "validation": {"files": ["2026-10/*"]}},
            ["train/2026-09/a.jsonl", "validation/2026-10/a.jsonl"],
        ),
        (  # both were named: what a name says counts no more
            {"files": ["*.jsonl", "2026-09/b.jsonl"], "validation": {"files": ["2026-09/a.jsonl"]}},
            ["train/2026-09/b.jsonl", "train/validation.jsonl", "validation/2026-09/a.jsonl"],
        ),
        (
            {"validation": {"uri": "pvc://other/held-out"}},
            ["train/2026-09/a.jsonl", "train/2026-09/b.jsonl", "train/2026-10/a.jsonl", "validation/quiz.jsonl"],
        ),
        (
            {"files": ["2026-09/a.jsonl"], "validation": {"uri": "pvc://other/held-out", "files": ["q*.jsonl"]}},
            ["train/2026-09/a.jsonl", "validation/quiz.jsonl"],
        ),
        (
            {"uri": "pvc://data/rows/2026-09/a.jsonl", "validation": {"uri": "pvc://other/held-out/quiz.jsonl"}},
            ["train/a.jsonl", "validation/quiz.jsonl"],
        ),
    ],
)
def test_each_side_has_its_folder(pod: pods.Pod, dataset: dict[str, Any], expected: list[str]) -> None:
    assert names(pod, fetched(pod, **dataset)) == expected


@pytest.mark.parametrize(
    ("dataset", "reason", "words"),
    [
        ({"validation": {"files": ["*.csv"]}}, Reason.DATASET_NOT_FOUND, "fits dataset.validation.files *.csv (it has"),
        (
            {"uri": "pvc://data/rows/validation.jsonl", "validation": {"files": ["*.jsonl"]}},
            Reason.DATASET_INVALID,
            "is one file: validation.files are chosen from a folder",
        ),
        (
            {"uri": "pvc://data/tests", "validation": {"uri": "pvc://other/held-out"}},
            Reason.DATASET_INVALID,
            "pvc://data/tests: names keep test-0.jsonl out of training (test, validation): name those to train on in "
            "dataset.files",
        ),
        (
            {"uri": "pvc://data/two", "validation": {"files": ["a.jsonl"]}},
            Reason.DATASET_INVALID,
            "pvc://data/two: names keep b-test.jsonl out of training (test, validation), and dataset.validation.files "
            "take a.jsonl: name those",
        ),
        (
            {"validation": {"uri": "pvc://other/absent"}},
            Reason.DATASET_NOT_FOUND,
            "pvc://other/absent: there is no such file or folder in the claim, or nothing in it. Check "
            "dataset.validation.uri",
        ),
        (
            {"validation": {"uri": "pvc://other/held-out", "files": ["*.md"]}},
            Reason.DATASET_NOT_FOUND,
            "pvc://other/held-out has no file that fits dataset.validation.files *.md (it has notes.md, quiz.jsonl)",
        ),
    ],
)
def test_what_cannot_be_held_out_is_told(pod: pods.Pod, dataset: dict[str, Any], reason: Reason, words: str) -> None:
    with pytest.raises(StageError) as caught:
        fetched(pod, **dataset)
    assert caught.value.reason is reason
    assert words in caught.value.message


def test_a_link_that_leads_nowhere_is_no_file(pod: pods.Pod) -> None:
    (pod.paths.claim("validation") / "held-out/quiz.jsonl").unlink()
    (pod.paths.claim("validation") / "held-out/quiz.jsonl").symlink_to("absent.jsonl")
    with pytest.raises(StageError, match=r"none of quiz.jsonl is a file there, only links .* Check dataset.validation"):
        fetched(pod, validation={"uri": "pvc://other/held-out"})


def test_what_has_no_room_is_told_before_it_is_fetched(tmp_path: Path) -> None:
    arrived: list[str] = []
    rows = RowFiles("s3://b/a/", {"a.jsonl": 10**18, "b.jsonl": 1}, lambda names, _folder: arrived.extend(names))
    with pytest.raises(StageError, match="needs 931322574") as caught:
        rows.bring(["a.jsonl", "b.jsonl"], tmp_path, 0)
    assert (caught.value.reason, caught.value.needed_bytes) == (Reason.STORE_FULL, 10**18 + 1)
    rows.bring(["b.jsonl"], tmp_path, 0)
    assert arrived == ["b.jsonl"]


def test_the_digest_counts_both_sides(pod: pods.Pod) -> None:
    dataset = {"files": ["2026-09/*"], "validation": {"uri": "pvc://other/held-out"}}
    first = fetched(pod, **dataset)
    assert first.dataset_bytes == len(FILES["2026-09/a.jsonl"] + FILES["2026-09/b.jsonl"] + rows(200, 4))
    assert fetched(pod, **dataset, digest=first.dataset_digest).cached
    put(pod, "validation", "held-out/quiz.jsonl", rows(200, 5))
    assert fetched(pod, **dataset).dataset_digest != first.dataset_digest
    with pytest.raises(StageError, match="pvc://data/rows with pvc://other/held-out has digest") as caught:
        fetched(pod, **dataset, digest=first.dataset_digest)
    assert caught.value.reason is Reason.DATASET_CHANGED


def test_sides_are_counted_and_never_mixed(pod: pods.Pod) -> None:
    code, said = checked(pod, files=["**"], validation={"files": ["2026-10/*", "validation.jsonl"]})
    assert code == 0, said.message
    counts = [said.result[key] for key in ("rows", "trainRows", "validationRows", "leakedRows")]
    assert counts == [29, 20, 9, 0]
    assert report(pod)["files"] == [
        "train/2026-09/a.jsonl",
        "train/2026-09/b.jsonl",
        "validation/2026-10/a.jsonl",
        "validation/validation.jsonl",
    ]
    trained = (pod.paths.data / "train.jsonl").read_text()
    assert not any(f"What is {number}?" in trained for number in (20, 25, 100))


def test_a_copy_of_a_held_out_file_is_not_trained_on(pod: pods.Pod) -> None:
    """Also where the two come from different places, so that no name tells it."""
    put(pod, "dataset", "rows/2026-09/copy.jsonl", rows(200, 4))
    code, said = checked(pod, files=["2026-09/*"], validation={"uri": "pvc://other/held-out"})
    assert code == 0, said.message
    assert (said.result["trainRows"], said.result["validationRows"], said.result["leakedRows"]) == (20, 4, 0)
    assert report(pod)["unused_files"] == ["train/2026-09/copy.jsonl"]
    code, said = checked(pod, files=["2026-09/copy.jsonl"], validation={"uri": "pvc://other/held-out"})
    assert (code, said.reason) == (42, Reason.DATASET_INVALID)
    assert "each file to train on (2026-09/copy.jsonl) is one of those held out too" in said.message


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl", rows(20, 1) + b"{\n", "validation/2026-10/a.jsonl line 2"),
        ("a.jsonl.gz", b"\x1f\x8bno", "validation/2026-10/a.jsonl.gz line 1: cannot be unpacked"),
        ("a.csv", b"", "the files for validation (validation/2026-10/a.csv) are empty"),
    ],
)
def test_a_bad_file_is_named_with_its_side(pod: pods.Pod, name: str, data: bytes, words: str) -> None:
    """Where the other side has a file of its name."""
    (pod.paths.claim("dataset") / "rows/2026-10/a.jsonl").unlink()
    put(pod, "dataset", f"rows/2026-10/{name}", data)
    code, said = checked(pod, files=["2026-*/*"], validation={"files": ["2026-10/*"]})
    assert (code, said.reason) == (42, Reason.DATASET_INVALID)
    assert words in said.message


def test_leaks_are_counted_between_the_sides(pod: pods.Pod) -> None:
    put(pod, "validation", "held-out/quiz.jsonl", rows(200, 4) + rows(0, 1))
    code, said = checked(pod, files=["2026-09/*"], validation={"uri": "pvc://other/held-out"})
    assert (code, said.result["leakedRows"]) == (0, 1)
    put(pod, "validation", "held-out/quiz.jsonl", rows(0, 8) + rows(200, 2))
    code, said = checked(pod, files=["2026-09/*"], validation={"uri": "pvc://other/held-out"})
    assert (code, said.reason) == (42, Reason.DATASET_INVALID)
    assert said.message.startswith("the validation set is the training set: 8 of 10 held-out rows are copies")


@pytest.mark.parametrize("empty", [b"", b"\n\n"])
def test_held_out_files_without_rows_are_told(pod: pods.Pod, empty: bytes) -> None:
    put(pod, "validation", "held-out/quiz.jsonl", empty)
    code, said = checked(pod, files=["2026-09/*"], validation={"uri": "pvc://other/held-out"})
    assert (code, said.reason) == (42, Reason.DATASET_INVALID)
    assert said.message.startswith("no row is held out: the files for validation (validation/quiz.jsonl) are empty.")


def test_keys_of_one_source_are_not_sent_to_the_other(pod: pods.Pod) -> None:
    """The Secret of validation is its own, and none is used where none is named."""
    for purpose, word in (("dataset", "token-of-dataset"), ("validation", "token-of-validation")):
        (pod.root / "secrets" / purpose).mkdir(parents=True)
        (pod.root / "secrets" / purpose / "token").write_text(word)
    seen = hub_tokens(pod, {"uri": "hf://datasets/acme/rows", "validation": {"uri": "hf://datasets/acme/quiz"}})
    assert seen == {"acme/rows": {"Bearer token-of-dataset"}, "acme/quiz": {"Bearer token-of-validation"}}


def hub_tokens(pod: pods.Pod, dataset: dict[str, Any]) -> dict[str, set[str]]:
    """What a hub is told by whom, by repository; its answers are those of one that takes any token."""
    state, seen = hubs.HubState(), dict[str, set[str]]()
    state.datasets = {
        "acme/rows": hubs.Repository({"train.jsonl": rows(0, 4)}),
        "acme/quiz": hubs.Repository({"test.jsonl": rows(9, 2)}),
    }

    def answer(method: str, path: str, headers: dict[str, str]) -> Any:
        repository = next(name for name in state.datasets if name in path)
        seen.setdefault(repository, set()).add(headers.get("authorization", ""))
        return hubs.hub_answer(state, method, path, {**headers, "authorization": ""})

    with hubs.serving(answer) as url:
        given = FetchInput(owner="o", model={"uri": "pvc://m/tiny"}, dataset=dataset, hub_endpoint=url)
        found = fetch.run(given, pod.paths, fetch.AddressGuard(allowed=lambda address: address.is_loopback))
    assert names(pod, found) == ["train/train.jsonl", "validation/test.jsonl"]
    return seen
