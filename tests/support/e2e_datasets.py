"""Small datasets for each way to tune, with a pattern that even the tiny model can learn. Pure; rows only."""

from typing import Any

ROWS = 64
COLOURS = ("red", "blue", "green", "white")


def preferences() -> list[dict[str, Any]]:
    """Pairs of answers: red is liked better than whatever else."""
    return [
        {"prompt": _asked(n), "chosen": _said(n, "red"), "rejected": _said(n, COLOURS[1 + n % 3])} for n in range(ROWS)
    ]


def thumbs() -> list[dict[str, Any]]:
    """Single answers: red is liked, blue is not."""
    return [{"prompt": _asked(n), "completion": _said(n, COLOURS[n % 2]), "label": n % 2 == 0} for n in range(ROWS)]


def classes() -> list[dict[str, Any]]:
    """Texts of three kinds that differ in their words."""
    texts = {
        "praise": "I like the colour of thing {}",
        "question": "What is the colour of thing {}?",
        "complaint": "I dislike how thing {} does not do what it should",
    }
    names = [sorted(texts)[number % 3] for number in range(ROWS)]
    return [{"text": texts[name].format(number), "label": name} for number, name in enumerate(names)]


def _asked(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is the colour of thing {number}?"}]


def _said(number: int, colour: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": f"The colour of thing {number} is {colour}."}]


DATASETS = {"preferences": preferences, "thumbs": thumbs, "classes": classes}
