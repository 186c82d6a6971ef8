"""Makes the demo's dataset: questions about Kubernetes fields, answered in the words of its OpenAPI documents.

Split by field name, and by answer: a held-out question is about a field name that training never saw, and its answer is
nowhere in the training rows. Deterministic for a given set of documents; never talks to a cluster itself.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop_demo.openapi import Field, merge_schemas, walk

MAX_ANSWER = 240  # characters: the first sentences, as many as fit
MIN_ANSWER = 20  # shorter descriptions say nothing
VALIDATION_ROWS = 120
# A sentence ends at a full stop before a capital or a quote; "e.g." and "i.e." do not end one.
SENTENCE_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)\s+(?=[A-Z\"'`])")
NOISE = re.compile(r"\s*(More info:|See |Read more:)?\s*https?://\S+")


@dataclass(frozen=True)
class Row:
    """One question with its answer; ``name`` is the field name that the split goes by."""

    name: str
    question: str
    answer: str

    def as_chat(self) -> dict[str, Any]:
        """Return the row in the chat form that trainers read."""
        turns = (("user", self.question), ("assistant", self.answer))
        return {"messages": [{"role": role, "content": content} for role, content in turns]}


@dataclass(frozen=True)
class Dataset:
    """The two halves."""

    train: tuple[Row, ...]
    validation: tuple[Row, ...]


def first_sentences(description: str) -> str:
    """Return the first sentences that fit; empty when not even the first one does."""
    paragraph = " ".join(description.split("\n\n", 1)[0].split())
    answer = ""
    for sentence in SENTENCE_END.split(NOISE.sub("", paragraph)):
        if len(answer) + len(sentence) + 1 > MAX_ANSWER:
            break
        answer = f"{answer} {sentence}".strip()
    return answer


def question(field: Field) -> str:
    """Ask for one field."""
    article = "an" if field.kind[0] in "AEIO" else "a"
    return f"What does the field {field.path} of {article} {field.kind} do?"


def rows(fields: Iterable[Field]) -> list[Row]:
    """Every field as a row, the same name with the same answer only once."""
    found: dict[tuple[str, str], Row] = {}
    for field in fields:
        answer = first_sentences(field.description)
        if len(answer) >= MIN_ANSWER:
            found.setdefault((field.name, answer), Row(field.name, question(field), answer))
    return list(found.values())


def _order(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def held_out_names(found: Iterable[Row], wanted: int) -> set[str]:
    """Return field names, in the order of their hash, until their rows are enough."""
    counts: dict[str, int] = {}
    for row in found:
        counts[row.name] = counts.get(row.name, 0) + 1
    names: set[str] = set()
    total = 0
    for name in sorted(counts, key=_order):
        if total >= wanted:
            break
        names.add(name)
        total += counts[name]
    return names


def split(found: list[Row], wanted: int = VALIDATION_ROWS) -> Dataset:
    """Split by name; a training row whose answer is also held out is dropped. Training rows are shuffled by hash."""
    names = held_out_names(found, wanted)
    validation = [row for row in found if row.name in names][:wanted]
    answers = {row.answer for row in found if row.name in names}
    train = [row for row in found if row.name not in names and row.answer not in answers]
    return Dataset(tuple(sorted(train, key=lambda row: _order(row.question))), tuple(validation))


def build(documents: Mapping[str, Any]) -> Dataset:
    """Make the dataset from OpenAPI v3 documents by path (``apis/batch/v1``)."""
    return split(rows(walk(merge_schemas(documents))))


CARD = """# Questions about the Kubernetes API

{train} training and {validation} held-out questions, made from a cluster's own OpenAPI v3 documents. Split by field
name: held-out questions are about fields, and have answers, that the training rows do not hold.
Text: the Kubernetes authors, Apache-2.0.
"""


def write(dataset: Dataset, folder: Path) -> None:
    """Write ``train.jsonl``, ``validation.jsonl`` and the card, as a dataset repository holds them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, half in (("train", dataset.train), ("validation", dataset.validation)):
        lines = (json.dumps(row.as_chat(), ensure_ascii=False) + "\n" for row in half)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    card = CARD.format(train=len(dataset.train), validation=len(dataset.validation))
    (folder / "README.md").write_text(card, encoding="utf-8")
