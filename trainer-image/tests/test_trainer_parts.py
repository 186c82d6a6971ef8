"""Small parts: limits of a pod, text scores, sealed folders, last words."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tuneloop_trainer.cgroup import cpu_threads, memory_limit
from tuneloop_trainer.evaluation import exact, rouge_l
from tuneloop_trainer.files import copy_file, folder_aside, folder_digest, is_whole, seal, sealed_digest
from tuneloop_trainer.loop import Loop
from tuneloop_trainer.machine import keep_memory


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "40000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_threads_follow_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], threads: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    write(tmp_path, files)
    assert cpu_threads(tmp_path) == threads


@pytest.mark.parametrize("files", [{}, {"cpu.max": "max 100000"}, {"cpu/cpu.cfs_quota_us": "-1"}])
def test_without_a_quota_all_cpus_are_used(tmp_path: Path, files: dict[str, str]) -> None:
    write(tmp_path, files)
    assert cpu_threads(tmp_path) >= 1


def test_the_usual_variable_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cpu_threads(tmp_path) == 3


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"memory.max": "4294967296"}, 4 * 2**30),
        ({"memory.max": "max"}, 0),
        ({"memory/memory.limit_in_bytes": "1073741824"}, 2**30),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, 0),
    ],
)
def test_the_memory_limit_is_read(tmp_path: Path, files: dict[str, str], limit: int) -> None:
    write(tmp_path, files)
    assert memory_limit(tmp_path) == limit


def test_the_allocator_can_be_told_to_keep_memory() -> None:
    assert keep_memory()


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text + "\n")


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("The cat", "the dog sat", 2 / 5),
        ("police killed the gunman", "police kill the gunman", 3 / 4),
        ("", "something", 0.0),
        ("猫は好き", "猫が好き", 3 / 4),
    ],
)
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(answer: str, reference: str, score: float) -> None:
    assert rouge_l(answer, reference) == pytest.approx(score)


def test_exact_match_ignores_white_space_only() -> None:
    assert exact(" two\nwords ", "two words")
    assert not exact("Two words", "two words")


def test_a_sealed_folder_is_whole_until_it_is_touched(tmp_path: Path) -> None:
    target = tmp_path / "sealed"
    with folder_aside(tmp_path) as aside:
        (aside / "a").write_text("1")
        (aside / "b").mkdir()
        (aside / "b/c").write_text("2")
        wanted = folder_digest(aside)
        assert seal(aside, target) == wanted == sealed_digest(target)
    assert is_whole(target)
    (target / "b/c").write_text("3")
    assert not is_whole(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sealed"]


def test_a_link_is_neither_copied_nor_part_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a").write_text("a")
    (tmp_path / "token").write_text("secret")
    before = folder_digest(tmp_path / "folder")
    (tmp_path / "folder/b").symlink_to(tmp_path / "token")
    assert folder_digest(tmp_path / "folder") == before
    with pytest.raises(OSError, match="symbolic links"):
        copy_file(tmp_path / "folder/b", tmp_path / "copy")


def test_a_damaged_folder_is_replaced_and_a_whole_one_kept(tmp_path: Path) -> None:
    target = tmp_path / "sealed"
    for _ in range(2):
        with folder_aside(tmp_path) as aside:
            (aside / "a").write_text("1")
            seal(aside, target)
    (target / "a").write_text("broken")
    with folder_aside(tmp_path) as aside:
        (aside / "a").write_text("1")
        seal(aside, target)
    assert is_whole(target)


@pytest.mark.parametrize(
    ("step", "seconds", "share"), [(10, 0.0, 0.1), (10, 30.0, 0.5), (90, 30.0, 0.9), (10, 90.0, 1.0)]
)
def test_time_counts_as_done_where_it_ends_training_first(step: float, seconds: float, share: float) -> None:
    state = SimpleNamespace(seconds=seconds)
    loop = SimpleNamespace(schedule=SimpleNamespace(total_steps=100), state=state, _limit=60.0)
    assert Loop.share(loop, step) == share
