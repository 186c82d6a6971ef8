"""Tokens by workers are those of one process; kept tokens are those of the first check, and never wrong ones."""

import json
import shutil
from pathlib import Path
from typing import Any

import pods
import pytest
from tuneloop_core.stages import Stage

from tuneloop_trainer import check, tokenizing
from tuneloop_trainer.tokenizing import worker_count

GIB = 2**30


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def checked(pod: pods.Pod, **training: Any) -> dict[str, Any]:
    given = pod.check_input({**pods.TRAINING, **training}) | {"datasetDigest": "sha256:" + "0" * 64}
    return pod.succeed(Stage.CHECK, given)


@pytest.mark.parametrize(
    ("rows", "cores", "memory", "workers"),
    [
        (4_999, 8, 0, 0),  # a worker would start longer than it works
        (5_000, 1, 0, 0),
        (5_000, 2, 0, 2),
        (5_000, 64, 0, 16),
        (5_000, 64, 2 * GIB, 3),
        (5_000, 64, GIB, 0),
    ],
)
def test_workers_fit_the_pod(rows: int, cores: int, memory: int, workers: int) -> None:
    assert worker_count(rows, cores, memory) == workers


def test_workers_write_what_one_process_writes(pod: pods.Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "BATCH", 5)
    alone, written = checked(pod), files(pod.paths.data)
    shutil.rmtree(pod.paths.work)
    monkeypatch.setattr(check, "allowed_workers", lambda _rows: 2)
    assert checked(pod) == alone
    assert files(pod.paths.data) == written


def test_the_next_job_on_the_same_data_takes_the_tokens(pod: pods.Pod) -> None:
    pod.paths.tokens.mkdir()
    first, written = checked(pod), files(pod.paths.data)
    report = (pod.paths.work / check.REPORT).read_bytes()
    shutil.rmtree(pod.paths.work)
    shutil.rmtree(pod.paths.dataset)  # it is not even looked at
    assert checked(pod) == first
    assert files(pod.paths.data) == written
    assert json.loads((pod.paths.work / check.REPORT).read_bytes()) == json.loads(report)


def test_other_settings_or_a_damaged_entry_are_checked_anew(pod: pods.Pod) -> None:
    pod.paths.tokens.mkdir()
    first = checked(pod)
    checked(pod, seed=8)
    entries = list(pod.paths.tokens.iterdir())
    assert len(entries) == 2
    for entry in entries:
        (entry / "data/train/trained.u8").write_bytes(b"")
    (pod.paths.work / "check/result.json").unlink()
    assert checked(pod) == first
    assert len(list(pod.paths.tokens.iterdir())) == 2
