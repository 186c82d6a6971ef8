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

QUIZ_ROWS = 6
QUIZ = """
task: colour-quiz
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: answer
doc_to_choice: choices
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
"""A task of lm-eval's format, as a user brings one beside its rows."""


def quiz() -> list[dict[str, Any]]:
    """What the task asks."""
    choices = list(COLOURS)
    return [
        {"question": f"What is the colour of thing {n}?", "choices": choices, "answer": n % 4} for n in range(QUIZ_ROWS)
    ]
