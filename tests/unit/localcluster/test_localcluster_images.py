"""Tags follow from inputs; contexts hold the inputs and nothing else; old images go, current ones stay."""

import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from tuneloop_localcluster import contexts, images, imagetable, pause
from tuneloop_localcluster.buildah import stale_stages, tls_flags, uv_settings
from tuneloop_localcluster.errors import ClusterError
from tuneloop_localcluster.imagetable import IMAGES, Image

FILES = {"app/Dockerfile": b"-FROM x", "app/a.py": b"-a"}
APP = Image("app", "app/Dockerfile", ("app",))
BASES = {"BASE_IMAGE": "localhost/tuneloop/base:1"}


def test_the_same_inputs_give_the_same_tag() -> None:
    tag = imagetable.tag(APP, FILES, BASES)
    assert tag == imagetable.tag(APP, dict(reversed(FILES.items())), BASES)
    assert len(tag) == 12
    assert set(tag) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    ("image", "files", "bases"),
    [
        (APP, {**FILES, "app/a.py": b"-b"}, BASES),
        (APP, {**FILES, "app/a.py": b"xa"}, BASES),
        (APP, {**FILES, "app/b.py": b"-"}, BASES),
        (APP, {"app/Dockerfile": b"-FROM x", "app/c.py": b"-a"}, BASES),
        (APP, FILES, {"BASE_IMAGE": "localhost/tuneloop/base:2"}),
        (Image("app", "app/Dockerfile", ("app",), arguments={"ENGINE": "gpu"}), FILES, BASES),
    ],
    ids=["content", "executable", "new file", "renamed", "base", "argument"],
)
def test_every_input_changes_the_tag(image: Image, files: dict[str, bytes], bases: dict[str, str]) -> None:
    assert imagetable.tag(image, files, bases) != imagetable.tag(APP, FILES, BASES)


def test_bases_are_built_before_what_needs_them() -> None:
    assert imagetable.in_build_order(["server", "trainer"]) == ["base", "torch-base", "server", "trainer"]
    assert imagetable.in_build_order(["pause", "operator", "base"]) == ["pause", "base", "operator"]


def test_a_changed_base_changes_what_is_built_on_it() -> None:
    order = imagetable.in_build_order(["trainer"])
    empty = {name: {"Dockerfile": b"-"} for name in IMAGES}
    first = imagetable.references(IMAGES, order, empty)
    assert list(first) == ["base", "torch-base", "trainer"]
    second = imagetable.references(IMAGES, order, {**empty, "torch-base": {"Dockerfile": b"-2"}})
    assert first["base"] == second["base"]
    assert first["torch-base"] != second["torch-base"]
    assert first["trainer"] != second["trainer"]


@pytest.mark.parametrize("name", IMAGES)
def test_every_base_is_an_image(name: str) -> None:
    assert set(IMAGES[name].bases.values()) <= {"base", *IMAGES}
    assert "BASE_IMAGE" in IMAGES[name].bases


def test_an_unknown_image_is_answered_with_the_known() -> None:
    with pytest.raises(ClusterError, match=r"no image is called 'opreator': there are base, pause, .*operator"):
        imagetable.in_build_order(["opreator"])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("core/src/a.py", False),
        ("README.md", False),
        ("core/README.md", True),
        ("trainer-image/tests/test_a.py", True),
        ("core/src/attests/a.py", True),
    ],
)
def test_tests_and_prose_take_no_part(path: str, expected: bool) -> None:
    assert imagetable.excluded(path) is expected


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("app/Dockerfile", "app/tracked.py", "app/ignored.pyc", "other/x", "app/sub/new.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".gitignore").write_text("*.pyc\n")
    return tmp_path


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)


def test_a_context_is_what_git_knows_or_would(checkout: Path) -> None:
    git(checkout, "init")
    git(checkout, "add", "app/tracked.py")
    assert contexts.files(checkout, APP) == ["app/Dockerfile", "app/sub/new.py", "app/tracked.py"]
    (checkout / "app/tracked.py").unlink()
    assert contexts.files(checkout, APP) == ["app/Dockerfile", "app/sub/new.py"]


def test_a_context_without_git(checkout: Path) -> None:
    (checkout / "app" / "__pycache__").mkdir()
    (checkout / "app" / "__pycache__" / "x").write_text("x")
    assert contexts.files(checkout, APP) == ["app/Dockerfile", "app/ignored.pyc", "app/sub/new.py", "app/tracked.py"]


def test_a_missing_dockerfile_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"image app: there is no app/Dockerfile in "):
        contexts.files(tmp_path, APP)


def test_a_staged_context_holds_the_inputs_and_their_modes(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "init")
    (checkout / "app/tracked.py").chmod(0o755)
    staged = contexts.stage(checkout, APP, tmp_path / "staged")
    found = sorted(str(path.relative_to(tmp_path / "staged")) for path in (tmp_path / "staged").rglob("*.*"))
    assert found == ["app/sub/new.py", "app/tracked.py"]
    assert staged == contexts.contents(checkout, contexts.files(checkout, APP))
    assert staged["app/tracked.py"] == b"xapp/tracked.py"
    assert staged["app/sub/new.py"] == b"-app/sub/new.py"


def test_outdated_keeps_the_last_three_and_the_current() -> None:
    newest_first = [f"localhost/tuneloop/server:{i}" for i in range(5)] + ["localhost/tuneloop/server-x:1"]
    assert images.outdated("server", newest_first, "localhost/tuneloop/server:4") == [
        "localhost/tuneloop/server:2",
        "localhost/tuneloop/server:3",
    ]
    assert images.outdated("server", newest_first[:3], "localhost/tuneloop/server:0") == []


def test_build_arguments_reach_only_who_declares_them() -> None:
    dockerfile = "ARG BASE_IMAGE=x\nFROM ${BASE_IMAGE}\nARG ENGINE=cpu\n"
    given = {"ENGINE": "gpu", "OTHER": "1"}
    assert imagetable.configured(APP, given, dockerfile).arguments == {"ENGINE": "gpu"}
    assert imagetable.configured(APP, given, "FROM x\n") == APP


@pytest.mark.parametrize("word", ["ENGINE", "=gpu", "A B=c", "BASE_IMAGE=x", "TORCH_BASE_IMAGE=x"])
def test_build_arguments_of_another_form_are_refused(word: str) -> None:
    with pytest.raises(ClusterError, match="build argument"):
        imagetable.build_arguments(["A=b=c", word])


def test_build_arguments() -> None:
    assert imagetable.build_arguments(["ENGINE=gpu", "A=b=c"]) == {"ENGINE": "gpu", "A": "b=c"}


def test_of_torch_only_the_current_is_kept_and_nothing_built_on_another() -> None:
    refs = [
        f"localhost/tuneloop/{name}" for name in ("torch-base:2", "torch-base:1", "server:1", "trainer:1", "operator:1")
    ]
    assert images.outdated("torch-base", refs, refs[0]) == [refs[1], refs[3], refs[2]]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("localhost:5000/team/app:1", ["--tls-verify=false"]),
        ("127.0.0.1:5000/app:1", ["--tls-verify=false"]),
        ("registry.example.com/team/app:1", []),
        ("registry.example.com:5000/app:1", []),
        ("localhost.example.com/app:1", []),
    ],
)
def test_only_a_registry_on_this_machine_may_speak_plain_http(target: str, expected: list[str]) -> None:
    assert tls_flags(target) == expected


def test_large_stages_and_old_ones_are_stale() -> None:
    newest_first = [{"id": str(i), "size": "5.2 GB" if i == 1 else "292 MB"} for i in range(9)]
    assert stale_stages(newest_first) == ["1", "7", "8"]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "system-certs = true\n"),
        ({"PIP_INDEX_URL": "https://p/simple"}, 'system-certs = true\nindex-url = "https://p/simple"\n'),
        ({"UV_INDEX_URL": "https://u", "PIP_INDEX_URL": "https://p"}, 'system-certs = true\nindex-url = "https://u"\n'),
    ],
)
def test_builds_use_the_index_that_the_machine_uses(environment: dict[str, str], expected: str) -> None:
    assert uv_settings(environment) == expected


def test_the_pause_archive_is_what_docker_writes() -> None:
    packed = pause.pack(b"program", "localhost/tuneloop/pause:local", "amd64")
    assert packed == pause.pack(b"program", "localhost/tuneloop/pause:local", "amd64")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        read = {name: archive.extractfile(name).read() for name in archive.getnames()}  # type: ignore[union-attr]
    assert json.loads(read["manifest.json"])[0]["RepoTags"] == ["localhost/tuneloop/pause:local"]
    assert json.loads(read["config.json"])["config"] == {"Entrypoint": ["/pause"], "User": "65535:65535"}
    with tarfile.open(fileobj=io.BytesIO(read["layer.tar"])) as layer:
        assert layer.getmember("pause").mode == 0o755
