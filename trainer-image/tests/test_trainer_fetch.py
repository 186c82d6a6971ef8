"""Stage fetch with the real clients against servers on loopback, and the guard that keeps them from harm."""

import errno
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hubs
import pods
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tuneloop_core.stages import FetchInput, FetchResult, Reason, Stage

from tuneloop_trainer import fetch
from tuneloop_trainer.claims import open_claim
from tuneloop_trainer.download import Downloader, S3Credentials
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.files import is_whole, store_full_told
from tuneloop_trainer.guard import AddressGuard, cluster_guard, guarded_client

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
        ("oci://host/model", {}, Reason.MODEL_UNSUPPORTED, "from hf://, s3:// and pvc://, not oci://"),
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
    with pytest.raises(StageError, match=r"no file there that fits dataset\.files \*\.parquet"):
        fetch.run(stage_input, bare_pod.paths)


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


# ---- the guard -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "169.254.169.254", "fe80::1", "::ffff:127.0.0.1", "224.0.0.1",
        "::ffff:169.254.169.254", "2002:7f00:1::", "64:ff9b::a9fe:a9fe", "100.100.100.200",
        "fd00:ec2::254", "10.96.0.1",
    ],
)  # fmt: skip
def test_addresses_that_lead_back_are_refused(address: str) -> None:
    guard = AddressGuard(["10.96.0.1/32"], resolver=lambda _host, _port: ["10.0.0.1", address])
    with pytest.raises(StageError) as caught:
        guard.addresses("data.example.com", 443)
    assert caught.value.reason is Reason.URI_REFUSED
    assert address in caught.value.message


@pytest.mark.parametrize("address", ["10.1.2.3", "192.168.1.1", "172.20.0.5", "8.8.8.8", "2606:4700::1", "fd12::1"])
def test_public_and_private_addresses_are_allowed(address: str) -> None:
    assert AddressGuard(resolver=lambda _host, _port: [address]).addresses("hub", 443) == [address]


CLUSTER = {"10.96.0.1": "10.96.0.1", "kubernetes.default.svc": "10.96.0.1", "api.cloud": "10.9.9.9"}


def by_name(host: str, _port: int) -> list[str]:
    if host not in CLUSTER:
        raise OSError("no such name")
    return [CLUSTER[host]]


@pytest.mark.parametrize(
    ("environment", "refused", "host", "port", "is_refused"),
    [
        ({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, (), "kubernetes.default.svc", 443, True),
        ({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, (), "10.96.0.1", 80, True),
        ({"KUBERNETES_SERVICE_HOST": "api.cloud"}, (), "api.cloud", 443, True),  # some clouds' hooks write a name
        ({"KUBERNETES_SERVICE_HOST": "api.cloud"}, (), "10.96.0.1", 443, True),
        ({"KUBERNETES_SERVICE_HOST": "nowhere"}, (), "api.cloud", 443, False),
        ({}, (), "kubernetes.default.svc", 443, False),  # not in a pod
        ({}, ("10.9.9.9:6443",), "api.cloud", 6443, True),
        ({}, ("10.9.9.9:6443",), "api.cloud", 9000, False),  # an S3 on the only node
        ({}, ("10.9.9.0/24",), "api.cloud", 9000, True),
    ],
)
def test_the_api_server_is_refused_by_itself(
    environment: dict[str, str], refused: tuple[str, ...], host: str, port: int, is_refused: bool
) -> None:
    guard = cluster_guard(refused, environment, by_name)
    if is_refused:
        with pytest.raises(StageError, match="an address of the cluster's nodes, its API or a metadata service"):
            guard.addresses(host, port)
    else:
        assert guard.addresses(host, port) == [CLUSTER[host]]


def test_ipv6_refusals_of_one_port() -> None:
    guard = AddressGuard(["[fd00::1]:6443"], lambda _host, _port: ["fd00::1"])
    assert guard.addresses("s3", 9000) == ["fd00::1"]
    with pytest.raises(StageError, match="fd00::1"):
        guard.addresses("s3", 6443)


def test_a_stage_asks_its_own_environment(bare_pod: pods.Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "192.0.2.1")
    code, said = bare_pod.run(Stage.FETCH, {"model": {"uri": "hf://acme/tiny"}, "hubEndpoint": "https://192.0.2.1"})
    assert (code, said.reason) == (42, "URIRefused")


def test_the_client_connects_to_the_address_that_was_checked() -> None:
    """A name that answers otherwise the second time (DNS rebinding) is never asked a second time."""
    answers = iter([["127.0.0.1"]])
    with hubs.serving(lambda *_: (200, {}, b"ok")) as url:
        port = url.rsplit(":", 1)[1]
        guard = AddressGuard(resolver=lambda _host, _port: next(answers), allowed=lambda address: address.is_loopback)
        with guarded_client(guard) as client:
            assert client.get(f"http://rebinding.example.com:{port}/").content == b"ok"


def test_a_name_without_address_is_a_connection_error() -> None:
    def unknown(_host: str, _port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    with pytest.raises(StageError) as caught:
        Downloader(AddressGuard(resolver=unknown), 0).https("https://absent.example.com/a.jsonl", "", Path("/tmp"))
    assert caught.value.reason is Reason.HUB_UNAVAILABLE


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
