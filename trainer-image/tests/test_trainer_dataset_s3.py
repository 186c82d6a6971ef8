"""Datasets from s3:// prefixes, from a real S3 server: which objects come, whole and under their names, or why not."""

import hashlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import artifacts
import hubs
import pods
import pytest
import stores
from tuneloop_core.api.sources import DatasetSource
from tuneloop_core.stages import FetchInput, Reason

from tuneloop_trainer import s3files
from tuneloop_trainer.datasetfetch import fetch_dataset
from tuneloop_trainer.download import About, S3Credentials
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.files import is_whole
from tuneloop_trainer.lmeval.sources import fetch_tasks
from tuneloop_trainer.rowfiles import Access
from tuneloop_trainer.s3 import s3_client
from tuneloop_trainer.s3files import S3Folder, is_path

pytestmark = pytest.mark.timeout(1800)  # on a cold machine the servers are built first

ROWS = b'{"text": "one"}\n{"text": "two"}\n'
OBJECTS = {
    "support/2026-09/part-0.jsonl": ROWS,
    "support/2026-09/part-1.jsonl": ROWS * 2,
    "support/2026-10/part-0.jsonl": ROWS * 3,
    "support/2026-10/part-0.csv": b"text\na\n",
    "support/notes.md": b"#",
    "split/train-0.jsonl": ROWS,
    "split/train-1.jsonl": ROWS * 2,
    "split/validation.jsonl": ROWS,
    "split/_SUCCESS": b"",
    "papers/a.pdf": b"%PDF",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stores.S3Server]:
    with stores.s3_server(tmp_path_factory.mktemp("s3") / "server") as running:
        client(running).create_bucket(Bucket="rows")
        for key, data in OBJECTS.items():
            put(running, key, data)
        client(running).put_object(Bucket="rows", Key="support/2026-11/", Body=b"")  # a console's empty folder
        running.add_user("stranger", "stranger-word")
        yield running


@pytest.fixture
def pod(server: stores.S3Server, bare_pod: pods.Pod) -> pods.Pod:
    """A pod with the server's keys for the dataset."""
    keys(bare_pod, "dataset", server.access_key_id, server.secret_access_key)
    return bare_pod


def keys(pod: pods.Pod, purpose: str, access: str, secret: str) -> None:
    folder = pod.root / "secrets" / purpose
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "accessKeyId").write_text(access)
    (folder / "secretAccessKey").write_text(secret)


def client(server: stores.S3Server) -> Any:
    given = S3Credentials(server.access_key_id, server.secret_access_key)
    return s3_client(server.endpoint, given, artifacts.LOOPBACK)


def put(server: stores.S3Server, key: str, data: bytes) -> None:
    client(server).put_object(Bucket="rows", Key=key, Body=data)


def folder_of(server: stores.S3Server, prefix: str) -> S3Folder:
    given = S3Credentials(server.access_key_id, server.secret_access_key)
    return S3Folder(f"s3://rows/{prefix}", server.endpoint, given, artifacts.LOOPBACK, About())


def fetched(server: stores.S3Server, pod: pods.Pod, uri: str, max_bytes: int = 0, **dataset: Any) -> tuple[Path, bool]:
    source = DatasetSource.model_validate({"uri": uri, "endpoint": server.endpoint, **dataset})
    given = FetchInput(owner="FineTuneJob test/job", max_bytes=max_bytes)
    return fetch_dataset(source, Access(given, pod.paths, artifacts.LOOPBACK))


def files(folder: Path) -> dict[str, bytes]:
    assert is_whole(folder)
    return {name: data for name, data in artifacts.contents(folder).items() if name != "DIGEST"}


def refused(server: stores.S3Server, pod: pods.Pod, uri: str, **given: Any) -> StageError:
    with pytest.raises(StageError) as caught:
        fetched(server, pod, uri, **given)
    assert "owner-word" not in caught.value.message
    assert not list(pod.paths.datasets.iterdir())
    return caught.value


@pytest.mark.parametrize(
    ("uri", "patterns", "expected"),
    [
        ("s3://rows/split/", None, ["train-0.jsonl", "train-1.jsonl", "validation.jsonl"]),
        (
            "s3://rows/support/",
            ["**/*.jsonl"],
            ["2026-09/part-0.jsonl", "2026-09/part-1.jsonl", "2026-10/part-0.jsonl"],
        ),
        ("s3://rows/support/", ["2026-10/*"], ["2026-10/part-0.csv", "2026-10/part-0.jsonl"]),
        ("s3://rows/support/2026-09/", ["part-?.jsonl"], ["part-0.jsonl", "part-1.jsonl"]),
        ("s3://rows/split/", ["train-1.jsonl", "train-*"], ["train-0.jsonl", "train-1.jsonl"]),
    ],
)
def test_objects_below_a_prefix_are_chosen(
    server: stores.S3Server, pod: pods.Pod, uri: str, patterns: list[str] | None, expected: list[str]
) -> None:
    folder, cached = fetched(server, pod, uri, files=patterns)
    prefix = uri.removeprefix("s3://rows/")
    assert files(folder) == {name: OBJECTS[prefix + name] for name in expected}
    assert not cached
    assert fetched(server, pod, uri, files=patterns) == (folder, True)


def test_one_object_is_named_as_before(server: stores.S3Server, pod: pods.Pod) -> None:
    error = refused(server, pod, "s3://rows/support")
    assert (error.reason, "the name of a folder ends in '/'" in error.message) == (Reason.DATASET_NOT_FOUND, True)
    folder, _ = fetched(server, pod, "s3://rows/support/2026-09/part-1.jsonl")
    assert files(folder) == {"part-1.jsonl": ROWS * 2}


def test_held_out_objects_lie_apart(server: stores.S3Server, pod: pods.Pod) -> None:
    """Of the same prefix; or of another, with keys of its own."""
    folder, _ = fetched(server, pod, "s3://rows/support/", validation={"files": ["2026-10/*.jsonl"]})
    assert list(files(folder)) == [
        "train/2026-09/part-0.jsonl",
        "train/2026-09/part-1.jsonl",
        "validation/2026-10/part-0.jsonl",
    ]
    apart = {"uri": "s3://rows/split/", "endpoint": server.endpoint}
    with pytest.raises(StageError, match=r"s3://rows/split/: .*of dataset.validation.credentialsSecret") as caught:
        fetched(server, pod, "s3://rows/support/2026-09/", files=["*0*"], validation=apart)
    assert caught.value.reason is Reason.ACCESS_DENIED
    keys(pod, "validation", server.access_key_id, server.secret_access_key)
    folder, _ = fetched(server, pod, "s3://rows/support/2026-09/", files=["*0*"], validation=apart)
    assert list(files(folder)) == ["train/part-0.jsonl", "validation/validation.jsonl"]


@pytest.mark.parametrize(
    ("uri", "given", "reason", "words"),
    [
        (
            "s3://rows/support/",
            {"files": ["2027-*/*.jsonl", "*.parquet"]},
            Reason.DATASET_NOT_FOUND,
            "s3://rows/support/ has no file that fits dataset.files 2027-*/*.jsonl, *.parquet (it has "
            "2026-09/part-0.jsonl, 2026-09/part-1.jsonl, 2026-10/part-0.csv, 2026-10/part-0.jsonl, notes.md); what is",
        ),
        ("s3://rows/papers/", {}, Reason.DATASET_INVALID, "has no file that is read (it has a.pdf); what is read is"),
        ("s3://rows/absent/", {}, Reason.DATASET_NOT_FOUND, "nothing lies below this prefix. Check dataset.uri"),
        ("s3://elsewhere/a/", {}, Reason.DATASET_NOT_FOUND, "NoSuchBucket"),
        ("s3://rows/split/", {"max_bytes": 50}, Reason.DATASET_INVALID, "hub.maxBytes of this installation allows"),
        (
            "s3://rows/support/",
            {"files": ["**"], "validation": {"files": ["2028-*/*"]}},
            Reason.DATASET_NOT_FOUND,
            "has no file that fits dataset.validation.files 2028-*/*",
        ),
        (
            "s3://rows/support/",
            {"files": ["2026-09/*"], "validation": {"files": ["**/*.jsonl"]}},
            Reason.DATASET_INVALID,
            "each file to train on (2026-09/part-0.jsonl, 2026-09/part-1.jsonl) fits dataset.validation.files too",
        ),
        (
            "s3://rows/support/2026-09/",
            {},
            Reason.DATASET_INVALID,
            "s3://rows/support/2026-09/: the dataset has 2 files (part-0.jsonl, part-1.jsonl) and none is named "
            "train.jsonl; name the file in dataset.uri, the files in dataset.files",
        ),
        ("s3://rows/split/", {"max_bytes": 50}, Reason.DATASET_INVALID, "Choose fewer of its files by dataset.files."),
    ],
)
def test_what_does_not_fit_is_told_with_what_is_there(
    server: stores.S3Server, pod: pods.Pod, uri: str, given: dict[str, Any], reason: Reason, words: str
) -> None:
    error = refused(server, pod, uri, **given)
    assert error.reason is reason
    assert words in error.message


def test_a_stranger_is_told_so(server: stores.S3Server, pod: pods.Pod) -> None:
    keys(pod, "dataset", "stranger", "stranger-word")
    error = refused(server, pod, "s3://rows/split/")
    assert error.reason is Reason.ACCESS_DENIED
    assert "check accessKeyId and secretAccessKey of dataset.credentialsSecret" in error.message
    assert "stranger-word" not in error.message


def test_a_listing_has_all_its_pages(server: stores.S3Server) -> None:
    """A page has a thousand keys at most."""
    s3, names = client(server), [f"part-{number:04}.jsonl" for number in range(1003)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: s3.put_object(Bucket="rows", Key=f"many/{name}", Body=b"{}"), names))
    assert [each.name for each in folder_of(server, "many/").listing()] == names


def test_ranges_arrive_in_their_places(
    server: stores.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3files, "RANGE_BYTES", 1000)
    data = b"".join(number.to_bytes(4, "big") for number in range(5001))
    put(server, "large/deep/a.jsonl", data)
    put(server, "large/empty.jsonl", b"")
    source = folder_of(server, "large/")
    source.download(source.listing(), tmp_path)
    assert artifacts.contents(tmp_path) == {"deep/a.jsonl": data, "empty.jsonl": b""}


def test_an_object_that_changes_ends_the_attempt(server: stores.S3Server, tmp_path: Path) -> None:
    put(server, "moving/a.jsonl", ROWS)
    source = folder_of(server, "moving/")
    listed = source.listing()
    put(server, "moving/a.jsonl", ROWS[::-1])
    with pytest.raises(StageError, match="changed while it was read; it will be tried again") as caught:
        source.download(listed, tmp_path)
    assert (caught.value.reason, caught.value.exit_code) == (Reason.HUB_UNAVAILABLE, 75)


def test_an_object_that_is_gone_ends_the_attempt(server: stores.S3Server, tmp_path: Path) -> None:
    put(server, "going/a.jsonl", ROWS)
    source = folder_of(server, "going/")
    listed = source.listing()
    client(server).delete_object(Bucket="rows", Key="going/a.jsonl")
    with pytest.raises(StageError, match="a file that was listed is gone; it will be tried again") as caught:
        source.download(listed, tmp_path)
    assert (caught.value.reason, caught.value.exit_code) == (Reason.HUB_UNAVAILABLE, 75)


def test_too_many_objects_are_refused(server: stores.S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3files, "MOST_OBJECTS", 3)
    with pytest.raises(StageError, match=r"more than 3 objects .*: name a longer one in dataset.uri"):
        folder_of(server, "support/").listing()


def test_a_task_of_ones_own_comes_from_a_prefix(server: stores.S3Server, bare_pod: pods.Pod) -> None:
    for name, data in (("quiz.yaml", b"task: quiz\n"), ("test.jsonl", ROWS), ("more/b.jsonl", ROWS), ("a.bin", b"0")):
        put(server, f"evals/quiz/{name}", data)
    keys(bare_pod, "task-0", server.access_key_id, server.secret_access_key)
    source = {"uri": "s3://rows/evals/quiz/", "endpoint": server.endpoint, "files": ["*.jsonl"]}
    given = FetchInput(owner="o", tasks=[{"name": "quiz", "source": source}])
    fetch_tasks(given, bare_pod.paths, artifacts.LOOPBACK)
    assert list(files(bare_pod.paths.task("quiz"))) == ["quiz.yaml", "test.jsonl"]
    small = given.model_copy(update={"max_bytes": 20})
    shutil.rmtree(bare_pod.paths.task("quiz"))
    with pytest.raises(
        StageError, match=r"allows .* Choose fewer of its files by evaluation\.tasks quiz source\.files"
    ):
        fetch_tasks(small, bare_pod.paths, artifacts.LOOPBACK)


# ---- what a real server does not do on demand ----------------------------------------------------------------------


def answering(objects: dict[str, bytes], failing: list[str]) -> Any:
    """Listing and ranges of one bucket; each range in ``failing`` is answered with 503 once, and taken from it."""

    def answer(_method: str, path: str, headers: dict[str, str]) -> hubs.Answer:
        url = urlsplit(path)
        if "list-type" in parse_qs(url.query):
            return 200, {}, listing(objects)
        key, wanted = unquote(url.path).removeprefix("/rows/"), headers["range"]
        if wanted in failing:
            failing.remove(wanted)
            return 503, {}, b"<Error><Code>SlowDown</Code></Error>"
        first, last = map(int, wanted.removeprefix("bytes=").split("-"))
        return 206, {}, objects[key][first : last + 1]

    return answer


def listing(objects: dict[str, bytes]) -> bytes:
    items = "".join(
        f"<Contents><Key>{key}</Key><Size>{len(data)}</Size><ETag>&quot;{hashlib.md5(data).hexdigest()}&quot;</ETag>"
        "</Contents>"
        for key, data in objects.items()
    )
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>".encode()


def download(objects: dict[str, bytes], folder: Path, failing: list[str]) -> None:
    with hubs.serving(answering(objects, failing)) as url:
        source = S3Folder("s3://rows/a/", url, S3Credentials("key", "secret"), artifacts.LOOPBACK, About())
        source.download(source.listing(), folder)


def test_a_server_that_is_busy_costs_one_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3files, "RANGE_BYTES", 10)
    failing = ["bytes=10-19", "bytes=30-31"]
    download({"a/b/c.jsonl": ROWS, "a/d.jsonl": ROWS[:5]}, tmp_path, failing)
    assert artifacts.contents(tmp_path) == {"b/c.jsonl": ROWS, "d.jsonl": ROWS[:5]}
    assert failing == []


@pytest.mark.parametrize("key", ["a/../x.jsonl", "a//etc/x.jsonl", "a/b/./x.jsonl", "a/b/../../x.jsonl", "a//x.jsonl"])
def test_a_key_that_leads_elsewhere_is_refused(tmp_path: Path, key: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(StageError, match="is no path of a file") as caught:
        download({"a/fine.jsonl": ROWS, key: ROWS}, inside, [])
    assert caught.value.reason is Reason.URI_REFUSED
    assert list(tmp_path.rglob("*")) == [inside]


def test_a_file_that_is_a_folder_too_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"x is a file, and x/y.jsonl lies below it; a folder cannot have both"):
        download({"a/x": ROWS, "a/x/y.jsonl": ROWS}, tmp_path, [])


@pytest.mark.parametrize("name", ["a.jsonl", "a b/..c/d..jsonl", "dt=2026-09-01/ü.jsonl", "x" * 255])
def test_paths(name: str) -> None:
    assert is_path(name)


@pytest.mark.parametrize("name", ["", "/a", "a/", "..", "a/../b", ".", "a\x00b", "a\nb", "x" * 256, "ü" * 128])
def test_no_paths(name: str) -> None:
    assert not is_path(name)
