"""Gates: what passes, what misses, by how much."""

import pytest

from tuneloop_core.api.finetunejob import Gate
from tuneloop_core.gates import all_passed, judge
from tuneloop_core.stages import Scores

BASE = Scores(eval_loss=4.0, perplexity=54.6, exact_match=0.0, rouge_l=0.2, tasks={"arc_easy/acc": 0.4})
TUNED = Scores(eval_loss=2.0, perplexity=7.4, exact_match=0.1, rouge_l=0.3, tasks={"arc_easy/acc": 0.5})


@pytest.mark.parametrize(
    ("gate", "passed", "message"),
    [
        ({"metric": "evalLoss", "max": "2.5"}, True, "evalLoss is 2, asked for at most 2.5"),
        ({"metric": "evalLoss", "max": "1.5"}, False, "evalLoss is 2, asked for at most 1.5: missed by 0.5"),
        ({"metric": "rougeL", "min": "0.3"}, True, "rougeL is 0.3, asked for at least 0.3"),
        ({"metric": "rougeL", "min": "0.4"}, False, "rougeL is 0.3, asked for at least 0.4: missed by 0.1"),
        (
            {"metric": "evalLoss", "ratioToBaseMax": "0.7"},
            True,
            "evalLoss tuned/base (2/4) is 0.5, asked for at most 0.7",
        ),
        (
            {"metric": "evalLoss", "ratioToBaseMax": "0.4"},
            False,
            "evalLoss tuned/base (2/4) is 0.5, asked for at most 0.4: missed by 0.1",
        ),
        (
            {"metric": "rougeL", "ratioToBaseMin": "1.2"},
            True,
            "rougeL tuned/base (0.3/0.2) is 1.5, asked for at least 1.2",
        ),
        ({"metric": "arc_easy/acc", "min": "0.5"}, True, "arc_easy/acc is 0.5, asked for at least 0.5"),
        ({"metric": "arc_easy/f1", "min": "0.5"}, False, "arc_easy/f1 was not measured"),
        ({"metric": "exactMatch", "ratioToBaseMin": "1.2"}, True, "exactMatch is 0.1, the base's is 0"),
    ],
)
def test_each_bound(gate: dict[str, str], passed: bool, message: str) -> None:
    (result,) = judge([Gate.model_validate(gate)], BASE, TUNED)
    assert (result.passed, result.message) == (passed, message)


def test_a_score_that_was_not_measured_fails_and_says_so() -> None:
    (result,) = judge([Gate(metric="rougeL", min="0.1")], BASE, Scores(eval_loss=1.0))
    assert not result.passed
    assert "was not measured; set evaluation.generations above 0" in result.message


def test_all_must_pass_and_none_is_a_pass() -> None:
    results = judge([Gate(metric="evalLoss", max="2.5"), Gate(metric="evalLoss", max="1")], BASE, TUNED)
    assert not all_passed(results)
    assert all_passed([])
