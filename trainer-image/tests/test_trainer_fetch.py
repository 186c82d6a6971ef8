"""Stage fetch with the real clients against servers on loopback."""

import errno
import json
import time
from collections.abc import Iterator
from pathlib import Path

import hubs
import pods
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tuneloop_core.api.sources import DatasetSource
from tuneloop_core.stages import FetchInput, FetchResult, Reason, Stage

from tuneloop_trainer import arrival, fetch, rowfiles
from tuneloop_trainer.datasetfetch import fetch_dataset
from tuneloop_trainer.download import About, Downloader, S3Credentials
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.files import is_whole, store_full_told
from tuneloop_trainer.guard import AddressGuard
from tuneloop_trainer.rowfiles import Access

ON_LOOPBACK = AddressGuard(allowed=lambda address: address.is_loopback)
ROWS = b'{"text": "one"}\n{"text": "two"}\n'


@pytest.fixture
def state(tiny: Path) -> hubs.HubState:
    files = {path.name: path.read_bytes() for path in tiny.iterdir()}
    extra = {
        "README.md": b"#",
        "pytorch_model.bin": b"pickle",
        "modeling.py": b"evil()",
        "onnx/model.safetensors": b"x",
    }
    state = hubs.HubState()
    state.models = {
        "acme/tiny": hubs.Repository(files | extra),
        "acme/pickle": hubs.Repository({"config.json": b"{}", "pytorch_model.bin": b"x"}),
        "acme/code": hubs.Repository(
            {"config.json": b'{"model_type": "x", "auto_map": {"AutoModel": "m.M"}}', "m.safetensors": b"x"}
        ),
        "acme/private": hubs.Repository(files, private=True),
        "acme/gated": hubs.Repository(files, gated=True),
    }
    state.datasets = {
        "acme/rows": hubs.Repository({"train.jsonl": ROWS, "validation.jsonl": ROWS, "README.md": b"#"}),
        "acme/arrow": hubs.Repository({"data/train-0.arrow": b"ARROW1"}),
        "acme/many": hubs.Repository(
            {
                **{f"data/train-{number}-of-3.parquet": b"PAR1" for number in range(3)},
                "data/test-0-of-1.parquet": b"PAR1",
                "train.jsonl": ROWS,
                "german/train.csv": b"text\na\n",
                **{f"parts/train/{number}.json": ROWS for number in range(2)},
                "german/stats.json": b"{}",
                "dataset_infos.json": b"{}",
            }
        ),
    }
    return state


@pytest.fixture
def hub(state: hubs.HubState) -> Iterator[str]:
    with hubs.serving(lambda *request: hubs.hub_answer(state, *request)) as url:
        yield url


def run(pod: pods.Pod, hub: str, model: str, dataset: str = "", token: str = "", **model_fields: str) -> FetchResult:
    if token:
        (pod.root / "secrets/model").mkdir(parents=True)
        (pod.root / "secrets/model/token").write_text(token + "\n")
    source = {"uri": model, **model_fields}
    stage_input = FetchInput(
        owner="FineTuneJob test/job", model=source, dataset={"uri": dataset} if dataset else None, hub_endpoint=hub
    )
    return fetch.run(stage_input, pod.paths, ON_LOOPBACK)


def fails(pod: pods.Pod, hub: str, model: str, dataset: str = "", token: str = "", **fields: str) -> StageError:
    with pytest.raises(StageError) as caught:
        run(pod, hub, model, dataset, token, **fields)
    assert "hf_" not in caught.value.message
    return caught.value


def test_a_model_is_fetched_once_by_its_commit(bare_pod: pods.Pod, hub: str, state: hubs.HubState) -> None:
    result = run(bare_pod, hub, "hf://acme/tiny", "hf://datasets/acme/rows", revision="v1")
    assert result.model_uri == f"hf://acme/tiny@{hubs.COMMIT}"
    assert result.model_path == f"models/hf/acme--tiny/{hubs.COMMIT}"
    folder = bare_pod.root / "store" / result.model_path
    assert is_whole(folder)
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not names & {"pytorch_model.bin", "modeling.py", "onnx", ".cache", "README.md"}
    dataset = bare_pod.root / "store" / result.dataset_path
    assert {path.name for path in dataset.iterdir()} == {"train.jsonl", "validation.jsonl", "DIGEST"}
    assert result.dataset_digest == "sha256:" + dataset.name

    state.requests.clear()
    again = run(bare_pod, hub, "hf://acme/tiny", "hf://datasets/acme/rows")
    assert again.cached
    assert again.model_path == result.model_path
    assert not any(path.endswith(".safetensors") for _, path, _ in state.requests)
    assert not list(bare_pod.root.glob("store/**/.aside-*"))


def test_one_file_of_a_dataset_can_be_named(bare_pod: pods.Pod, hub: str) -> None:
    result = run(bare_pod, hub, "hf://acme/tiny", "hf://datasets/acme/rows/train.jsonl")
    dataset = bare_pod.root / "store" / result.dataset_path
    assert {path.name for path in dataset.iterdir()} == {"train.jsonl", "DIGEST"}


@pytest.mark.parametrize(
    ("model", "fields", "reason", "words"),
    [
        ("hf://acme/tiny", {"revision": "gone"}, Reason.REVISION_NOT_FOUND, "has no branch, tag or commit gone"),
        ("hf://acme/absent", {}, Reason.ACCESS_DENIED, "it is private or does not exist, and no token was given"),
        ("hf://acme/absent", {"token": "hf_good"}, Reason.MODEL_NOT_FOUND, "hf://acme/absent does not exist"),
        ("hf://acme/private", {}, Reason.ACCESS_DENIED, "no token was given"),
        ("hf://acme/tiny", {"token": "hf_bad"}, Reason.ACCESS_DENIED, "is wrong, expired or may not read it"),
        (
            "hf://acme/gated",
            {"token": "hf_good"},
            Reason.GATED_MODEL_NOT_ACCEPTED,
            "licence was not accepted by the owner",
        ),
        ("hf://acme/pickle", {}, Reason.MODEL_UNSUPPORTED, r"no .safetensors weights (it has pytorch_model.bin)"),
        ("hf://acme/code", {}, Reason.MODEL_UNSUPPORTED, "brings code of its own (auto_map"),
    ],
)
def test_each_refusal_has_its_reason(
    bare_pod: pods.Pod, hub: str, model: str, fields: dict[str, str], reason: Reason, words: str
) -> None:
    error = fails(bare_pod, hub, model, **fields)
    assert (error.reason, error.exit_code) == (reason, 42)
    assert words in error.message
    assert model in error.message


def test_a_private_model_is_fetched_with_its_token(bare_pod: pods.Pod, hub: str) -> None:
    assert run(bare_pod, hub, "hf://acme/private", token=hubs.TOKEN).model_commit == hubs.COMMIT


def test_a_hub_that_is_away_is_worth_another_try(
    bare_pod: pods.Pod, hub: str, state: hubs.HubState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _seconds: None)
    state.broken = True
    error = fails(bare_pod, hub, "hf://acme/tiny")
    assert (error.reason, error.exit_code) == (Reason.HUB_UNAVAILABLE, 75)
    error = fails(bare_pod, "http://127.0.0.1:9", "hf://acme/tiny")
    assert error.reason is Reason.HUB_UNAVAILABLE


@pytest.mark.parametrize(
    ("path", "patterns", "expected"),
    [
        ("", None, ["data/test-0-of-1.parquet", "train.jsonl"]),
        ("/german", None, ["german/train.csv"]),
        ("/data", None, ["data/test-0-of-1.parquet", *(f"data/train-{number}-of-3.parquet" for number in range(3))]),
        ("/data/train-1-of-3.parquet", None, ["data/train-1-of-3.parquet"]),
        ("/parts/train", None, ["parts/train/0.json", "parts/train/1.json"]),  # the folder's name is the split
        ("", ["data/train-[0]*"], None),
        ("", ["data/train-?-of-3.parquet"], [f"data/train-{number}-of-3.parquet" for number in range(3)]),
        ("/data", ["test-*", "train-0-*"], ["data/test-0-of-1.parquet", "data/train-0-of-3.parquet"]),
        ("", ["**/*.csv"], ["german/train.csv"]),
        ("", ["*.csv"], None),
    ],
)
def test_files_of_a_repository_are_chosen(
    bare_pod: pods.Pod, hub: str, path: str, patterns: list[str] | None, expected: list[str] | None
) -> None:
    dataset = {"uri": f"hf://datasets/acme/many{path}", "files": patterns}
    source = {"uri": "hf://acme/tiny"}
    stage_input = FetchInput(owner="FineTuneJob test/job", model=source, dataset=dataset, hub_endpoint=hub)
    if expected is None:
        with pytest.raises(StageError, match="has no file that fits") as caught:
            fetch.run(stage_input, bare_pod.paths, ON_LOOPBACK)
        assert caught.value.reason is Reason.DATASET_NOT_FOUND
        return
    folder = bare_pod.root / "store" / fetch.run(stage_input, bare_pod.paths, ON_LOOPBACK).dataset_path
    found = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    assert [file for file in found if file != "DIGEST"] == expected


@pytest.mark.parametrize(
    ("patterns", "held_out", "field"),
    [
        (["train.jsonl"], ["german/*.csv"], "dataset.files"),
        (["german/*.csv"], ["train.jsonl"], "dataset.validation.files"),
    ],
)
def test_the_field_that_chooses_fewer_is_that_of_the_side_which_is_too_large(
    bare_pod: pods.Pod, hub: str, patterns: list[str], held_out: list[str], field: str
) -> None:
    dataset = DatasetSource(uri="hf://datasets/acme/many", files=patterns, validation={"files": held_out})
    stage_input = FetchInput(owner="o", model={"uri": "hf://acme/tiny"}, hub_endpoint=hub, max_bytes=10)
    with pytest.raises(StageError, match=rf"Choose fewer of its files by {field}\."):
        fetch_dataset(dataset, Access(stage_input, bare_pod.paths, ON_LOOPBACK))


def test_datasets_that_are_not_there_or_not_read(bare_pod: pods.Pod, hub: str) -> None:
    error = fails(bare_pod, hub, "hf://acme/tiny", "hf://datasets/acme/arrow")
    assert (error.reason, "data/train-0.arrow" in error.message) == (Reason.DATASET_INVALID, True)
    error = fails(bare_pod, hub, "hf://acme/tiny", "hf://datasets/acme/rows/other.jsonl")
    assert (error.reason, "no file other.jsonl" in error.message) == (Reason.DATASET_NOT_FOUND, True)


def test_a_download_that_is_redirected_to_a_refused_address_is_refused(
    bare_pod: pods.Pod, hub: str, state: hubs.HubState
) -> None:
    state.redirect_downloads_to = "http://169.254.169.254/latest/meta-data"
    error = fails(bare_pod, hub, "hf://acme/tiny")
    assert error.reason is Reason.URI_REFUSED
    assert "169.254.169.254, a link-local address" in error.message


def test_too_large_a_model_is_refused_before_it_is_downloaded(bare_pod: pods.Pod, hub: str) -> None:
    stage_input = FetchInput(owner="o", model={"uri": "hf://acme/tiny"}, hub_endpoint=hub, max_bytes=1000)
    with pytest.raises(StageError, match=r"hub\.maxBytes of this installation allows"):
        fetch.run(stage_input, bare_pod.paths, ON_LOOPBACK)


def test_a_vanished_model_is_fetched_again_though_the_result_is_there(bare_pod: pods.Pod, tiny: Path) -> None:
    claim = bare_pod.root / "claims/model/tiny"
    claim.mkdir(parents=True)
    for path in tiny.iterdir():
        (claim / path.name).write_bytes(path.read_bytes())
    stage_input = {"model": {"uri": "pvc://models/tiny"}, "pvcModelPath": "/claims/model"}
    first = bare_pod.succeed(Stage.FETCH, stage_input)
    folder = bare_pod.root / "store" / first["modelPath"]
    folder.rename(folder.with_name("evicted"))
    assert bare_pod.succeed(Stage.FETCH, stage_input)["modelPath"] == first["modelPath"]
    assert is_whole(folder)


# ---- https and s3 --------------------------------------------------------------------------------------------------


def test_https_streams_a_file_and_keeps_the_token_from_other_hosts(tmp_path: Path) -> None:
    seen: dict[str, dict[str, str]] = {}

    def other(_method: str, path: str, headers: dict[str, str]) -> hubs.Answer:
        seen["other"] = headers
        return 200, {}, ROWS

    with hubs.serving(other) as second:

        def first(_method: str, path: str, headers: dict[str, str]) -> hubs.Answer:
            seen["first"] = headers
            return 302, {"Location": second + "/rows"}, b""

        with hubs.serving(first) as url:
            downloader = Downloader(ON_LOOPBACK, 0, schemes=("http",))
            path = downloader.https(f"{url}/data/train.jsonl?sig=hush-hush", "bearer-token", tmp_path)
    assert (path.name, path.read_bytes()) == ("train.jsonl", ROWS)
    assert seen["first"]["authorization"] == "Bearer bearer-token"
    assert "authorization" not in seen["other"]


@pytest.mark.parametrize(
    ("status", "reason"),
    [(404, Reason.DATASET_NOT_FOUND), (403, Reason.ACCESS_DENIED), (503, Reason.HUB_UNAVAILABLE)],
)
def test_https_refusals_never_show_the_query(tmp_path: Path, status: int, reason: Reason) -> None:
    with hubs.serving(lambda *_: (status, {}, b"")) as url, pytest.raises(StageError) as caught:
        Downloader(ON_LOOPBACK, 0, schemes=("http",)).https(f"{url}/rows.jsonl?sig=hush-hush", "", tmp_path)
    assert caught.value.reason is reason
    assert "hush-hush" not in caught.value.message


def test_the_log_of_a_stage_never_shows_a_query(bare_pod: pods.Pod, hub: str, caplog: pytest.LogCaptureFixture) -> None:
    bare_pod.run(Stage.FETCH, {"model": {"uri": "hf://acme/tiny"}, "hubEndpoint": hub})
    with hubs.serving(lambda *_: (200, {}, ROWS)) as url:
        Downloader(ON_LOOPBACK, 0, schemes=("http",)).https(f"{url}/a.jsonl?sig=hush-hush", "", bare_pod.root)
    assert "hush-hush" not in caplog.text


class Plain(Downloader):
    """Asks https:// addresses without TLS."""

    def __init__(self, guard: AddressGuard, max_bytes: int, about: About) -> None:
        super().__init__(guard, max_bytes, ("http",), about)

    def https(self, url: str, token: str, folder: Path) -> Path:
        return super().https(url.replace("https://", "http://"), token, folder)


def test_a_fetch_never_shows_signatures(
    bare_pod: pods.Pod, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of both sides: in its log, and where it refuses."""
    monkeypatch.setattr(rowfiles, "Downloader", Plain)
    monkeypatch.setattr(arrival, "REPORT_SECONDS", 0.001)
    caplog.set_level("INFO", logger="tuneloop")

    def answer(*_: object) -> hubs.Answer:
        """Once the log tells how much has arrived."""
        end = time.monotonic() + 60
        while "so far" not in caplog.text and time.monotonic() < end:
            time.sleep(0.01)
        return 200, {}, ROWS

    with hubs.serving(answer) as url:
        rows, held_out = (
            f"{url.replace('http', 'https')}/{name}.jsonl?X-Amz-Signature=s3cret" for name in ("rows", "quiz")
        )
        access = Access(FetchInput(owner="o"), bare_pod.paths, ON_LOOPBACK)
        source = {"uri": rows, "validation": {"uri": held_out}}
        folder, _ = fetch_dataset(DatasetSource.model_validate(source), access)
        assert (folder / "validation/quiz.jsonl").read_bytes() == ROWS
        assert "rows.jsonl: 0.0" in caplog.text
        for changed, words in (
            ({"digest": "sha256:" + "0" * 64}, "/rows.jsonl with https://"),
            ({"validation": {"files": ["*"]}}, "/rows.jsonl is one file"),
        ):
            with pytest.raises(StageError, match=words) as caught:
                fetch_dataset(DatasetSource.model_validate(source | changed), access)
            assert "s3cret" not in caught.value.message
    assert "s3cret" not in caplog.text


def test_a_download_stops_at_the_size_cap(tmp_path: Path) -> None:
    with hubs.serving(lambda *_: (200, {}, b"x" * 5000)) as url, pytest.raises(StageError, match="is larger than"):
        Downloader(ON_LOOPBACK, 1000, schemes=("http",)).https(f"{url}/rows.jsonl", "", tmp_path)


def test_a_redirect_from_https_to_http_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="only https:// is followed"):
        Downloader(ON_LOOPBACK, 0).https("http://127.0.0.1:9/rows.jsonl", "", tmp_path)


def test_s3_is_signed_and_its_answers_have_reasons(tmp_path: Path) -> None:
    credentials = S3Credentials("key", "secret")
    with hubs.serving(hubs.s3_answer({"bucket/a/train.jsonl": ROWS})) as url:
        downloader = Downloader(ON_LOOPBACK, 0)
        assert downloader.s3("s3://bucket/a/train.jsonl", url, credentials, tmp_path).read_bytes() == ROWS
        with pytest.raises(StageError) as caught:
            downloader.s3("s3://bucket/absent.jsonl", url, credentials, tmp_path)
        assert caught.value.reason is Reason.DATASET_NOT_FOUND
        with pytest.raises(StageError) as caught:
            downloader.s3("s3://bucket/a/train.jsonl", url, S3Credentials(), tmp_path)
        assert caught.value.reason is Reason.ACCESS_DENIED


def test_a_full_store_is_told_with_sizes(tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught, store_full_told(tmp_path, "hf://acme/tiny"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (caught.value.reason, caught.value.exit_code) == (Reason.STORE_FULL, 42)
    assert "hf://acme/tiny does not fit in the store" in caught.value.message
    assert "GiB are free" in caught.value.message or "MiB" in caught.value.message


def test_a_full_store_is_told_when_weights_are_written_too(tmp_path: Path) -> None:
    """safetensors raises an error of its own, which is no OSError; in these words, on a file system that was full."""
    words = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(StageError) as caught, store_full_told(tmp_path, "the train stage"):
        raise SafetensorError(words)
    assert (caught.value.reason, caught.value.exit_code) == (Reason.STORE_FULL, 42)
    with pytest.raises(SafetensorError, match="os error 2"), store_full_told(tmp_path, "the train stage"):
        save_file({"weight": torch.zeros(1)}, tmp_path / "absent/state.safetensors")


def test_settings_of_the_tiny_model_are_json(tiny: Path) -> None:
    assert json.loads((tiny / "config.json").read_text())["model_type"] == "llama"
