"""The dataset is what it says: built-in fields in the cluster's words, and held-out rows that training never saw."""

import json
from pathlib import Path
from typing import Any

import pytest

from tuneloop_demo.dataset import Row, build, first_sentences, held_out_names, question, rows, split, write
from tuneloop_demo.openapi import Field, kinds, merge_schemas, walk

EXCERPT = Path(__file__).parent / "openapi_excerpt.json"


@pytest.fixture(scope="module")
def documents() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(EXCERPT.read_text())
    return loaded


@pytest.fixture(scope="module")
def fields(documents: dict[str, Any]) -> list[Field]:
    return list(walk(merge_schemas(documents)))


def test_only_built_in_kinds_with_metadata_are_asked_of(documents: dict[str, Any]) -> None:
    assert set(kinds(merge_schemas(documents))) == {"Job", "CronJob"}


def test_a_shared_field_is_asked_where_it_lies_shallowest(fields: list[Field]) -> None:
    asked = {(field.kind, field.path) for field in fields}
    assert ("Job", "spec.completions") in asked
    assert ("CronJob", "spec.jobTemplate.spec.completions") not in asked
    assert ("CronJob", "spec.schedule") in asked
    assert ("Job", "spec.podFailurePolicy.rules[].action") in asked
    assert not any(field.path in ("apiVersion", "kind") for field in fields)


def test_the_question_of_the_issue(fields: list[Field]) -> None:
    row = next(row for row in rows(fields) if row.question == "What does the field spec.completions of a Job do?")
    assert row.answer.startswith(
        "Specifies the desired number of successfully finished pods the job should be run with."
    )


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("One. Two.", "One. Two."),
        ("Sets it, e.g. Foo or i.e. Bar. More info: https://example.com/x#y", "Sets it, e.g. Foo or i.e. Bar."),
        ("First  line\nwrapped.\n\nSecond paragraph.", "First line wrapped."),
        (f"Short. {'X' * 300}.", "Short."),
        ("y" * 400, ""),
    ],
)
def test_first_sentences(description: str, expected: str) -> None:
    assert first_sentences(description) == expected


def test_articles() -> None:
    assert question(Field("Ingress", "spec.rules", "")) == "What does the field spec.rules of an Ingress do?"


def test_the_same_words_under_the_same_name_are_asked_once() -> None:
    twice = [Field(kind, "spec.suspend", "Whether the controller should wait.") for kind in ("Job", "CronJob")]
    assert [row.question for row in rows(twice)] == ["What does the field spec.suspend of a Job do?"]


def test_split_shares_neither_names_nor_answers(fields: list[Field]) -> None:
    found = rows(fields)
    dataset = split(found, wanted=10)
    assert len(dataset.validation) == 10
    assert not {row.name for row in dataset.train} & {row.name for row in dataset.validation}
    assert not {row.answer for row in dataset.train} & {row.answer for row in dataset.validation}
    assert len(dataset.train) + len(dataset.validation) <= len(found)


def test_a_held_out_answer_under_another_name_is_dropped_from_training() -> None:
    found = [Row(name, f"{name}?", "the same words") for name in ("alpha", "beta")] + [Row("gamma", "gamma?", "others")]
    dataset = split(found, wanted=1)
    (held_out,) = dataset.validation
    assert all(row.answer != held_out.answer for row in dataset.train)


def test_held_out_names_do_not_depend_on_the_order(fields: list[Field]) -> None:
    found = rows(fields)
    assert held_out_names(found, 10) == held_out_names(list(reversed(found)), 10)


def test_what_is_written_is_the_same_every_time(documents: dict[str, Any], tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(build(documents), tmp_path / folder)
    for name in ("train.jsonl", "validation.jsonl", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    first = json.loads((tmp_path / "a" / "validation.jsonl").read_text().splitlines()[0])
    assert [turn["role"] for turn in first["messages"]] == ["user", "assistant"]
