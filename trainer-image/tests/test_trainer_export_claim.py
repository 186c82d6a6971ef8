"""Exports to pvc://, and what a full or unwritable claim gets."""

import errno
import os
from pathlib import Path

import artifacts
import pytest
from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.exports import claim as claim_export
from tuneloop_trainer.files import is_whole

URI = "pvc://shared/models/bots"


def test_a_folder_under_the_digest_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    artifact, pod = artifacts.sealed_artifact(tmp_path), artifacts.pod_with(tmp_path / "pod")
    assert artifacts.run_export(artifact, pod, URI) == f"{URI}/{artifact.name}"
    copy = pod.claim("output") / "models/bots" / artifact.name
    assert artifacts.contents(copy) == artifacts.contents(artifact)
    before = copy.stat().st_ino
    artifacts.run_export(artifact, pod, URI)
    assert copy.stat().st_ino == before
    assert [path.name for path in copy.parent.iterdir()] == [artifact.name]


def test_a_copy_that_rotted_is_made_anew(tmp_path: Path) -> None:
    artifact, pod = artifacts.sealed_artifact(tmp_path), artifacts.pod_with(tmp_path / "pod")
    artifacts.run_export(artifact, pod, URI)
    copy = pod.claim("output") / "models/bots" / artifact.name
    (copy / "adapter_model.safetensors").write_bytes(b"rotten")
    artifacts.run_export(artifact, pod, URI)
    assert is_whole(copy)


KILLED = """
import artifacts
from pathlib import Path
from tuneloop_trainer.exports import claim
from tuneloop_trainer.paths import Paths
real, copied = claim.copy_file, []
def killed(source, target):
    copied.append(target)
    if len(copied) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
claim.copy_file = killed
artifacts.run_export(Path(sys.argv[1]), Paths(Path(sys.argv[2])), sys.argv[3])
"""


def test_a_kill_between_files_leaves_no_folder_of_that_name(tmp_path: Path) -> None:
    artifact, pod = artifacts.sealed_artifact(tmp_path), artifacts.pod_with(tmp_path / "pod")
    artifacts.run_until_killed(KILLED, str(artifact), str(pod.root), URI)
    folder = pod.claim("output") / "models/bots"
    (left,) = folder.iterdir()
    assert left.name.startswith(".aside-")
    os.utime(left, (0, 0))  # a day later
    artifacts.run_export(artifact, pod, URI)
    assert [path.name for path in folder.iterdir()] == [artifact.name]


def test_a_link_out_of_the_claim_is_refused(tmp_path: Path) -> None:
    artifact, pod = artifacts.sealed_artifact(tmp_path), artifacts.pod_with(tmp_path / "pod")
    (pod.claim("output") / "models").symlink_to(tmp_path)
    with pytest.raises(StageError, match="leads out of claim shared"):
        artifacts.run_export(artifact, pod, URI)
    assert not (tmp_path / "bots").exists()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    artifact, pod = artifacts.sealed_artifact(tmp_path), artifacts.pod_with(tmp_path / "pod")
    (pod.claim("output") / "models").write_text("a file")
    with pytest.raises(StageError, match="a file is where a folder should be"):
        artifacts.run_export(artifact, pod, URI)


@pytest.mark.parametrize(
    ("number", "said", "code"),
    [
        (errno.ENOSPC, r"claim shared is full: .* are free.*enlarge it", 42),
        (errno.EDQUOT, r"claim shared is full", 42),
        (errno.EROFS, r"cannot be written by group 65532", 42),
        (errno.EACCES, r"cannot be written by group 65532", 42),
        (errno.EIO, r"Check the volume of claim shared; it is tried again", 75),
    ],
)
def test_what_a_disk_says_becomes_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str, code: int
) -> None:
    """A kernel's error in the middle of a copy; a full disk cannot be had without mounting one."""

    def fail(_source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    artifact, pod = artifacts.sealed_artifact(tmp_path), artifacts.pod_with(tmp_path / "pod")
    monkeypatch.setattr(claim_export, "copy_file", fail)
    with pytest.raises(StageError, match=said) as caught:
        artifacts.run_export(artifact, pod, URI)
    assert (caught.value.reason, caught.value.exit_code) == (Reason.EXPORT_FAILED, code)
    assert not [path for path in (pod.claim("output") / "models/bots").iterdir() if path.is_dir()]
    monkeypatch.undo()
    artifacts.run_export(artifact, pod, URI)
