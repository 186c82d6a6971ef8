"""What the survey says of a dataset as a whole; digests in bounded memory; packs; which files belong to which split."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tuneloop_core.data.columns import Columns
from tuneloop_core.data.files import (
    DatasetError,
    find_files,
    find_sides,
    held_out_files,
    matches,
    split_of,
    training_files,
    wanted_files,
)
from tuneloop_core.data.packing import pack_lengths
from tuneloop_core.data.rows import Format
from tuneloop_core.data.seen import Digests, digest
from tuneloop_core.data.survey import Reading, Survey, survey


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def look(
    folder: Path,
    train: list[dict[str, Any]],
    validation: list[dict[str, Any]] | None = None,
    objective: str = "SFT",
    **columns: str,
) -> Survey:
    held_out = [write(folder / "validation.jsonl", validation)] if validation is not None else []
    files = [write(folder / "train.jsonl", train)]
    return survey(files, Format.AUTO, True, held_out, Reading(Columns(columns), objective))


def pair(number: int, answer: str = "a") -> dict[str, str]:
    return {"prompt": f"question {number}", "completion": answer}


# ---- leaks and copies ----------------------------------------------------------------------------------------------


def test_duplicates_are_counted_on_each_side(tmp_path: Path) -> None:
    seen = look(tmp_path, [pair(1), pair(1), pair(2)], [pair(3), pair(3), pair(3, "b"), pair(4)])
    assert (seen.rows, seen.held_out, seen.duplicates, seen.leaked, seen.copied) == (7, 4, 2, 0, 0)


def test_held_out_rows_that_ask_what_training_asks_are_counted_once(tmp_path: Path) -> None:
    train = [pair(1), pair(1, "b"), pair(2), pair(2)]
    seen = look(tmp_path, train, [pair(1, "c"), pair(1, "d"), pair(2), pair(3), pair(4)])
    assert (seen.leaked, seen.copied, seen.exact) == (3, 1, True)
    seen.require_good()


@pytest.mark.parametrize(
    ("validation", "words"),
    [
        ([pair(1), pair(2)], "the validation set is the training set: all 2 held-out rows are copies"),
        ([pair(1), pair(2), pair(9)], "the validation set is the training set: 2 of 3 held-out rows are copies"),
    ],
)
def test_a_validation_set_that_is_the_training_set_is_refused(
    tmp_path: Path, validation: list[dict[str, str]], words: str
) -> None:
    seen = look(tmp_path, [pair(number) for number in range(5)], validation)
    with pytest.raises(DatasetError, match=words):
        seen.require_good()


def test_complaints_about_training_files_come_first(tmp_path: Path) -> None:
    seen = look(tmp_path, [pair(1), {"prompt": "p"}], [{"completion": "c"}, pair(2)])
    assert [words.split(":")[0] for words in seen.bad] == ["train.jsonl line 2", "validation.jsonl line 1"]
    assert seen.bad_rows == 2


# ---- labels and columns --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["b", "a", "b"], ["a", "b"]), (["10", "9", "-1"], ["-1", "9", "10"]), (["10", "9", "x"], ["10", "9", "x"])],
)
def test_classes_are_numbered_in_order(tmp_path: Path, names: list[str], expected: list[str]) -> None:
    rows = [{"text": f"t{number}", "label": name} for number, name in enumerate(names)]
    seen = look(tmp_path, rows, objective="Classification")
    assert (seen.labels, seen.train_labels) == (expected, Counter(names))
    seen.require_good()


def classes(*names: Any) -> list[dict[str, Any]]:
    return [{"text": f"text {number}", "label": name} for number, name in enumerate(names)]


@pytest.mark.parametrize(
    ("train", "validation", "objective", "words"),
    [
        (classes("a", "a"), None, "Classification", "label is a in every row; a classifier needs two classes"),
        (classes(*range(1002)), None, "Classification", "more than 1000 different values .* name classes with it"),
        (classes("a", "b"), [{"text": "t", "label": "c"}], "Classification", "label c is in the validation file only"),
        (
            [{**pair(number), "label": True} for number in range(3)],
            None,
            "KTO",
            "label is true in every row; KTO learns from liked and disliked answers",
        ),
    ],
)
def test_labels_that_teach_nothing_are_refused(
    tmp_path: Path, train: list[dict[str, Any]], validation: list[dict[str, Any]] | None, objective: str, words: str
) -> None:
    seen = look(tmp_path, train, validation, objective)
    with pytest.raises(DatasetError, match=words):
        seen.require_good()


def test_columns_of_other_names_are_read(tmp_path: Path) -> None:
    seen = look(tmp_path, [{"question": "q", "answer": "a"}], prompt="question", completion="answer")
    assert (seen.format, seen.rows) == (Format.COMPLETION, 1)
    seen.require_good()


def test_a_mapped_column_that_no_row_has_is_told(tmp_path: Path) -> None:
    rows = [{"instruction": "i", "output": "o", "context": "c"}]
    seen = look(tmp_path, rows, input="contxt")
    with pytest.raises(
        DatasetError, match="says input: contxt, but no row has such a column; the first row has context"
    ):
        seen.require_good()


def test_a_row_without_a_mapped_column_names_both(tmp_path: Path) -> None:
    seen = look(tmp_path, [{"q": "q", "a": "a"}, {"q": "q"}], prompt="q", completion="a")
    lacks = "has prompt but no completion (dataset.columns maps completion to a, which the row does not have)"
    assert seen.bad == [f"train.jsonl line 2: {lacks}"]


@pytest.mark.parametrize(
    ("rows", "objective", "words"),
    [
        ([pair(1)], "DPO", "the rows are Completion .* and objective DPO does not learn from them"),
        ([{"chosen": "a b", "rejected": "a c"}], "SFT", "the rows are Preference"),
        ([{"question": "q"}], "DPO", r"line 1: columns question match no format\. Each line should be one of .*chosen"),
        ([{"question": "q"}], "SFT", r"Other names are mapped by dataset\.columns"),
    ],
)
def test_rows_of_the_wrong_kind_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]], objective: str, words: str
) -> None:
    with pytest.raises(DatasetError, match=words):
        look(tmp_path, rows, objective=objective)


# ---- digests and packs ---------------------------------------------------------------------------------------------


def test_digests_are_a_set_with_a_ceiling() -> None:
    keys = [digest(str(number)) for number in range(20_000)]
    seen = Digests(limit=12_000, counted=True)
    assert not any(seen.add(key) for key in keys)
    assert (len(seen), seen.full) == (12_000, True)
    assert all(seen.add(key) for key in keys[:12_000])
    assert not seen.add(keys[-1])
    assert [seen.take(keys[0]), seen.take(keys[0]), seen.take(keys[-1])] == [2, 0, 0]


def test_a_digest_of_zero_is_one_too() -> None:
    seen = Digests()
    assert [seen.add(0), seen.add(0), seen.take(0)] == [False, True, 0]


def packs_one_by_one(lengths: list[int], capacity: int) -> int:
    """Best-fit decreasing as the books have it."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else capacity) - length)
    return len(rooms)


@pytest.mark.parametrize("seed", range(20))
def test_packing_by_counts_is_best_fit_decreasing(seed: int) -> None:
    chance = random.Random(seed)
    lengths = [chance.randint(1, chance.choice((20, 100))) for _ in range(chance.randint(1, 300))]
    found = pack_lengths(Counter(lengths), 100)
    assert (found.packs, found.tokens) == (packs_one_by_one(lengths, 100), sum(lengths))
    assert found.efficiency == pytest.approx(sum(lengths) / (found.packs * 100))


def test_longer_rows_are_cut_before_they_are_packed() -> None:
    found = pack_lengths({250: 2, 0: 3}, 100)
    assert (found.packs, found.tokens, found.efficiency) == (2, 200, 1.0)
    assert pack_lengths({}, 100).efficiency == 0.0


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train.jsonl", "train"),
        ("data/train-00000-of-00002.parquet", "train"),
        ("train/part-1.csv", "train"),
        ("my.training.json.gz", "train"),
        ("trainer.jsonl", ""),
        ("validation.jsonl", "validation"),
        ("my_val_2.csv", "validation"),
        ("dev/rows.jsonl", "validation"),
        ("test-0.parquet", "test"),
        ("train/test.jsonl", "test"),
        ("rows.jsonl", ""),
        ("value.jsonl", ""),
    ],
)
def test_the_split_is_in_the_name(path: str, split: str) -> None:
    assert split_of(path) == split


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("*.jsonl", "a.jsonl", True),
        ("*.jsonl", "data/a.jsonl", False),
        ("**/*.jsonl", "data/de/a.jsonl", True),
        ("**/*.jsonl", "a.jsonl", True),
        ("data/**", "data/de/a.jsonl", True),
        ("train-?.csv", "train-1.csv", True),
        ("train-?.csv", "train-10.csv", False),
        ("a.b", "aXb", False),
    ],
)
def test_globs_fit_whole_paths(pattern: str, path: str, fits: bool) -> None:
    assert matches(path, pattern) is fits


@pytest.mark.parametrize(
    ("paths", "patterns", "wanted"),
    [
        (["train.jsonl", "train.parquet", "README.md", "stats.json"], [], ["train.jsonl"]),
        (["data/train-0.parquet", "validation.jsonl"], [], ["data/train-0.parquet", "validation.jsonl"]),
        (["rows.csv", "dataset_infos.json", ".hidden.jsonl"], [], ["rows.csv"]),
        (["a.jsonl", "b.jsonl", "c.csv"], ["?.csv", "b.*"], ["b.jsonl", "c.csv"]),
        (["a.txt", "b.parquet.gz"], ["*"], []),
    ],
)
def test_files_of_a_repository_are_wanted(paths: list[str], patterns: list[str], wanted: list[str]) -> None:
    assert wanted_files(paths, patterns) == wanted


@pytest.mark.parametrize(
    ("paths", "patterns", "wanted"),
    [
        (["train.jsonl", "validation.jsonl", "test.jsonl"], [], ["validation.jsonl"]),
        (["train.jsonl", "test-0.csv", "test-1.csv"], [], ["test-0.csv", "test-1.csv"]),
        (["b.jsonl", "a.jsonl", "a.csv"], [], ["a.jsonl", "b.jsonl"]),
        (["train.jsonl"], [], ["train.jsonl"]),
        (["train.jsonl", "validation.jsonl"], ["t*"], ["train.jsonl"]),
        (["a.md"], [], []),
        (["a.jsonl"], ["*.csv"], []),
    ],
)
def test_files_to_hold_out(paths: list[str], patterns: list[str], wanted: list[str]) -> None:
    assert held_out_files(paths, patterns) == wanted


@pytest.mark.parametrize(
    ("paths", "patterns", "held_out", "wanted"),
    [
        (["a.jsonl", "b.jsonl"], [], ["b.jsonl"], ["a.jsonl"]),
        (["train.jsonl", "test.jsonl", "quiz.jsonl"], [], ["quiz.jsonl"], ["train.jsonl"]),
        (["rows.jsonl", "validation.jsonl"], [], [], ["rows.jsonl"]),
        (["train.jsonl", "test.jsonl"], ["*"], [], ["test.jsonl", "train.jsonl"]),
        (["a.jsonl", "b.jsonl"], ["*"], ["a.jsonl"], ["b.jsonl"]),
        (["a.jsonl"], ["*"], ["a.jsonl"], []),
    ],
)
def test_files_to_train_on(paths: list[str], patterns: list[str], held_out: list[str], wanted: list[str]) -> None:
    assert training_files(paths, patterns, held_out) == wanted


@pytest.mark.parametrize(
    ("files", "train", "validation", "unused"),
    [
        ({"train/a.jsonl": "1", "validation/b.jsonl": "2"}, ["a.jsonl"], ["b.jsonl"], []),
        (
            {"train/test.jsonl": "1", "train/b.csv": "22", "validation/train.jsonl": "3"},
            ["b.csv", "test.jsonl"],
            ["train.jsonl"],
            [],
        ),
        (
            {"train/a.jsonl": "1", "train/b.jsonl": "2", "validation/c.jsonl": "2"},
            ["a.jsonl"],
            ["c.jsonl"],
            ["b.jsonl"],
        ),
        ({"train/a.jsonl": "1", "train/b.md": "2", "validation/c.jsonl": "3"}, ["a.jsonl"], ["c.jsonl"], []),
    ],
)
def test_named_sides_are_folders(
    tmp_path: Path, files: dict[str, str], train: list[str], validation: list[str], unused: list[str]
) -> None:
    written(tmp_path, files)
    found = find_sides(tmp_path)
    sides = [[path.name for path in side] for side in (found.train, found.validation, found.unused)]
    assert sides == [train, validation, unused]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"validation/b.jsonl": "2"}, r"no file to train on that is read"),
        ({"train/b.jsonl": "2", "validation/b.md": "1"}, r"no file to hold out that is read"),
        (
            {"train/b.jsonl": "2", "validation/c.jsonl": "2"},
            r"each file to train on \(b\.jsonl\) is one of those held out",
        ),
    ],
)
def test_a_side_without_files_is_told(tmp_path: Path, files: dict[str, str], words: str) -> None:
    written(tmp_path, files)
    with pytest.raises(DatasetError, match=words):
        find_sides(tmp_path)


def written(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("names", "named", "train", "validation", "unused"),
    [
        (["test.csv"], False, ["test.csv"], [], []),
        (["train.parquet", "validation.csv"], False, ["train.parquet"], ["validation.csv"], []),
        (["train.jsonl", "train.csv"], False, ["train.jsonl"], [], ["train.csv"]),
        (["train.jsonl", "val.jsonl", "test.jsonl"], False, ["train.jsonl"], ["val.jsonl"], ["test.jsonl"]),
        (["a.csv", "b.csv", "test.csv"], True, ["a.csv", "b.csv"], ["test.csv"], []),
        (["rows.jsonl.gz", "dev.jsonl.gz", "dataset_info.json"], False, ["rows.jsonl.gz"], ["dev.jsonl.gz"], []),
        (["train/a.jsonl", "test/a.jsonl"], False, ["a.jsonl"], ["a.jsonl"], []),
    ],
)
def test_the_files_of_a_folder_have_a_side_each(
    tmp_path: Path, names: list[str], named: bool, train: list[str], validation: list[str], unused: list[str]
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_files(tmp_path, named)
    sides = ([path.name for path in side] for side in (found.train, found.validation, found.unused))
    assert tuple(sides) == (train, validation, unused)
