"""Rows that each objective learns something plain from: which colour is liked, and what a text is for."""

from typing import Any

COLOURS = ("red", "blue", "green", "white")
CLASSES = ("praise", "question", "complaint")
TEXTS = {
    "praise": "I like the colour of thing {}",
    "question": "What is the colour of thing {}?",
    "complaint": "I dislike how thing {} does not do what it should",
}


def question(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is the colour of thing {number}?"}]


def answer(number: int, colour: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": f"The colour of thing {number} is {colour}."}]


def preferences(rows: int = 24) -> list[dict[str, Any]]:
    """Red is liked better than whatever else."""
    return [
        {"prompt": question(n), "chosen": answer(n, "red"), "rejected": answer(n, COLOURS[1 + n % 3])}
        for n in range(rows)
    ]


def thumbs(rows: int = 48) -> list[dict[str, Any]]:
    """Red is liked, all else is not."""
    return [{"prompt": question(n), "completion": answer(n, COLOURS[n % 2]), "label": n % 2 == 0} for n in range(rows)]


def classes(rows: int = 60) -> list[dict[str, Any]]:
    """Three classes in turn."""
    names = [CLASSES[number % 3] for number in range(rows)]
    return [{"text": TEXTS[name].format(number), "label": name} for number, name in enumerate(names)]
