"""The mirror speaks the hub's protocol: every answer is judged by the hub's own client."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tuneloop_demo.mirror.app import create_app

READER, OTHER, STRANGER = "hf_reader", "hf_other", "hf_stranger"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("content")
    write(
        root,
        {
            ".mirror.json": json.dumps({"tokens": [OTHER]}),
            "models/acme/open/config.json": '{"model_type": "llama"}',
            "models/acme/open/model.safetensors": "0123456789",
            "models/acme/open/onnx/model.onnx": "x",
            "models/acme/secret/config.json": "{}",
            "models/acme/secret/.mirror.json": json.dumps({"private": True, "tokens": [READER]}),
            "models/acme/gated/config.json": "{}",
            "models/acme/gated/.mirror.json": json.dumps({"gated": True, "tokens": [READER]}),
            "datasets/acme/questions/train.jsonl": '{"messages": []}\n',
        },
    )
    (root / "models/acme/open/link.json").symlink_to("/etc/hostname")
    return root


@pytest.fixture(scope="module")
def endpoint(tree: Path) -> Iterator[str]:
    """A mirror in its own thread, since the hub's client is synchronous."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(create_app(tree))
    loop.run_until_complete(runner.setup())
    loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def api(endpoint: str, token: str | None = None) -> HfApi:
    return HfApi(endpoint=endpoint, token=token or False)


def test_info_names_the_commit_and_the_files(endpoint: str) -> None:
    info = api(endpoint).model_info("acme/open", files_metadata=True)
    assert info.sha is not None
    assert len(info.sha) == 40
    assert {file.rfilename: file.size for file in info.siblings or []} == {
        "config.json": 23,
        "model.safetensors": 10,
        "onnx/model.onnx": 1,
    }
    assert api(endpoint).model_info("acme/open", revision=info.sha).sha == info.sha


def test_tree_lists_folders(endpoint: str) -> None:
    top = {entry.path for entry in api(endpoint).list_repo_tree("acme/open")}
    assert top == {"config.json", "model.safetensors", "onnx"}
    assert [entry.path for entry in api(endpoint).list_repo_tree("acme/open", "onnx")] == ["onnx/model.onnx"]


def test_snapshot_download_of_a_model(endpoint: str, tmp_path: Path) -> None:
    folder = snapshot_download(
        "acme/open", endpoint=endpoint, cache_dir=tmp_path, token=False, allow_patterns=["*.json", "*.safetensors"]
    )
    found = {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}
    assert found == {"config.json", "model.safetensors"}
    assert (Path(folder) / "model.safetensors").read_text() == "0123456789"


def test_download_of_a_dataset_file(endpoint: str, tmp_path: Path) -> None:
    path = hf_hub_download(
        "acme/questions", "train.jsonl", repo_type="dataset", endpoint=endpoint, cache_dir=tmp_path, token=False
    )
    assert Path(path).read_text() == '{"messages": []}\n'


def test_ranges_resume_a_download(endpoint: str) -> None:
    url = f"{endpoint}/acme/open/resolve/main/model.safetensors"
    answer = httpx.get(url, headers={"Range": "bytes=4-"})
    assert (answer.status_code, answer.text) == (206, "456789")
    head = httpx.head(url)
    assert head.headers["X-Linked-Size"] == head.headers["Content-Length"] == "10"
    assert head.headers["ETag"]
    assert head.headers["X-Repo-Commit"]


@pytest.mark.parametrize(
    ("repo", "token", "error", "status"),
    [
        ("acme/absent", None, RepositoryNotFoundError, 404),
        ("acme/absent", OTHER, RepositoryNotFoundError, 404),
        ("acme/secret", None, HfHubHTTPError, 401),
        ("acme/secret", STRANGER, HfHubHTTPError, 401),
        ("acme/secret", OTHER, HfHubHTTPError, 403),
        ("acme/gated", None, GatedRepoError, 401),
        ("acme/gated", OTHER, GatedRepoError, 403),
        ("acme/open", STRANGER, HfHubHTTPError, 401),
    ],
)
def test_refusals(endpoint: str, repo: str, token: str | None, error: type[HfHubHTTPError], status: int) -> None:
    with pytest.raises(error) as caught:
        api(endpoint, token).get_hf_file_metadata(
            url=f"{endpoint}/{repo}/resolve/main/config.json", token=token or False
        )
    assert caught.value.response.status_code == status
    assert token is None or token not in caught.value.response.text


@pytest.mark.parametrize("repo", ["acme/secret", "acme/gated"])
def test_the_right_token_reads(endpoint: str, repo: str, tmp_path: Path) -> None:
    path = hf_hub_download(repo, "config.json", endpoint=endpoint, cache_dir=tmp_path, token=READER)
    assert Path(path).read_text() == "{}"
    assert api(endpoint).whoami(token=READER)["name"] == "mirror-user"


def test_metadata_of_a_gated_model_is_public(endpoint: str) -> None:
    assert api(endpoint).model_info("acme/gated").gated == "manual"


def test_a_missing_revision_and_a_missing_file(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(RevisionNotFoundError):
        api(endpoint).model_info("acme/open", revision="v9")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("acme/open", "absent.json", endpoint=endpoint, cache_dir=tmp_path, token=False)


@pytest.mark.parametrize(
    "path",
    [
        "acme/open/resolve/main/../../../../.mirror.json",
        "acme/open/resolve/main/..%2f..%2f..%2f.mirror.json",
        "acme/open/resolve/main/link.json",
        "acme/secret/resolve/main/.mirror.json",
        "..%2f../open/resolve/main/config.json",
    ],
)
def test_nothing_outside_the_lists_is_served(endpoint: str, path: str) -> None:
    answer = httpx.get(f"{endpoint}/{path}", headers={"Authorization": f"Bearer {READER}"})
    assert answer.status_code == 404


def test_content_copied_in_later_makes_a_new_commit(tmp_path: Path) -> None:
    from tuneloop_demo.mirror.repos import find_repo  # noqa: PLC0415 - the only test that asks the tree itself

    write(tmp_path, {"models/acme/m/config.json": "{}"})
    before = find_repo(tmp_path, "models", "acme", "m")
    write(tmp_path, {"models/acme/m/config.json": '{"a": 1}'})
    after = find_repo(tmp_path, "models", "acme", "m")
    assert before is not None
    assert after is not None
    assert before.commit != after.commit
