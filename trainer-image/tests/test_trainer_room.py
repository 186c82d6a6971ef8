"""Room in the store: on a file system that is really full, and what must never be removed."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pods
import pytest
from tuneloop_core.stages import FetchResult, Reason, Stage

from tuneloop_trainer.files import DIGEST_FILE, folder_bytes, is_whole

NOW = datetime.now(UTC)
LONG_AGO = NOW.timestamp() - 7 * 24 * 3600


def use(*paths: str, owners: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"listedAt": NOW.isoformat(), "paths": list(paths), "owners": list(owners)}


@pytest.fixture
def small(bare_pod: pods.Pod, tiny: Path) -> Iterator[pods.Pod]:
    """A pod whose store holds two and a half tiny models; a file system of its own, so that it is really full."""
    store = bare_pod.root / "store"
    size = folder_bytes(tiny) * 5 // 2
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", store], check=True)
    for folder in ("models", "datasets", "artifacts", "work"):
        (store / folder).mkdir()
    for number in range(3):
        shutil.copytree(tiny, bare_pod.root / f"claims/model/m{number}")
        (bare_pod.root / f"claims/model/m{number}/tokenizer.md.json").write_text(f'"{number}"')
    yield bare_pod
    subprocess.run(["umount", store], check=True)


def fetch(pod: pods.Pod, number: int, store: dict[str, Any] | None) -> Path:
    """Fetch one of the models; its folder."""
    given = {"model": {"uri": f"pvc://models/m{number}"}, "pvcModelPath": "/claims/model", "store": store}
    return pod.root / "store" / FetchResult.model_validate(pod.succeed(Stage.FETCH, given)).model_path


def unused_since(folder: Path, when: float) -> str:
    """As if the folder was last wanted then; its path in the store."""
    os.utime(folder / DIGEST_FILE, (when, when))
    return f"models/{folder.parent.name}/{folder.name}"


def test_the_least_recently_used_model_goes_when_room_is_needed(small: pods.Pod) -> None:
    first, second = fetch(small, 0, use()), fetch(small, 1, use())
    unused_since(first, LONG_AGO + 60)
    unused_since(second, LONG_AGO)
    third = fetch(small, 2, use())
    assert (first.exists(), second.exists()) == (True, False)
    assert is_whole(first)
    assert is_whole(third)


def test_a_model_that_is_wanted_again_is_the_most_recently_used(small: pods.Pod) -> None:
    first, second = fetch(small, 0, use()), fetch(small, 1, use())
    unused_since(first, LONG_AGO)
    unused_since(second, LONG_AGO + 60)
    assert fetch(small, 0, use()) == first  # nothing is copied, but it counts
    fetch(small, 2, use())
    assert (first.exists(), second.exists()) == (True, False)


@pytest.mark.parametrize("known", [True, False], ids=["all in use", "use not known"])
def test_what_is_in_use_stays_and_the_full_store_is_told(small: pods.Pod, known: bool) -> None:
    folders = [fetch(small, 0, use()), fetch(small, 1, use())]
    paths = [unused_since(folder, LONG_AGO) for folder in folders]
    given = {"model": {"uri": "pvc://models/m2"}, "pvcModelPath": "/claims/model"}
    code, said = small.run(Stage.FETCH, given | {"store": use(*paths) if known else None})
    assert (code, said.reason) == (42, Reason.STORE_FULL)
    assert "delete FineTuneJobs and ModelDeployments that nobody needs" in said.message
    assert all(is_whole(folder) for folder in folders)


def test_what_was_wanted_after_the_list_was_made_stays(small: pods.Pod) -> None:
    """A fetch that ended a moment ago: the operator did not know yet what it brought."""
    fetch(small, 0, use())
    fetch(small, 1, use())
    given = {"model": {"uri": "pvc://models/m2"}, "pvcModelPath": "/claims/model", "store": use()}
    code, said = small.run(Stage.FETCH, given)
    assert (code, said.reason) == (42, Reason.STORE_FULL)


def test_work_of_resources_that_are_gone_is_swept(bare_pod: pods.Pod, tiny: Path) -> None:
    shutil.copytree(tiny, bare_pod.root / "claims/model/m0")
    work = bare_pod.root / "store/work"
    for name, when in (("aaaaaaaa-kept", LONG_AGO), ("bbbbbbbb-gone", LONG_AGO), ("cccccccc-new", NOW.timestamp())):
        (work / name / "train/checkpoints").mkdir(parents=True)
        (work / name / "train/checkpoints/state").write_bytes(b"1" * 1000)
        os.utime(work / name, (when, when))
    fetch(bare_pod, 0, None)
    assert len(list(work.iterdir())) == 3
    shutil.rmtree(bare_pod.paths.work)
    fetch(bare_pod, 0, use(owners=("aaaaaaaa",)))
    assert sorted(path.name for path in work.iterdir()) == ["aaaaaaaa-kept", "cccccccc-new"]
