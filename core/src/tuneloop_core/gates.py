"""Gates: whether a tuned model's scores allow it to be published.

Pure: scores and gates in, verdicts with words out. Used by the operator to decide and by publish to record.
"""

from collections.abc import Iterable

from tuneloop_core.api.finetunejob import Gate
from tuneloop_core.api.formats import parse_decimal
from tuneloop_core.stages import GateResult, Scores

_SCORES = {
    "evalLoss": "eval_loss",
    "perplexity": "perplexity",
    "exactMatch": "exact_match",
    "rougeL": "rouge_l",
    "rewardAccuracy": "reward_accuracy",
    "accuracy": "accuracy",
    "f1": "f1",
}


def judge(gates: Iterable[Gate], base: Scores, tuned: Scores) -> list[GateResult]:
    """One verdict for each gate, in order. A score that was not measured fails its gate and says so."""
    return [_judge_one(gate, base, tuned) for gate in gates]


def all_passed(results: Iterable[GateResult]) -> bool:
    """Whether nothing stands against publishing; no gates pass."""
    return all(result.passed for result in results)


def _score(scores: Scores, metric: str) -> float | None:
    """A metric of ours, or TASK/METRIC."""
    if "/" in metric:
        return scores.tasks.get(metric)
    found: float | None = getattr(scores, _SCORES[metric])
    return found


def _judge_one(gate: Gate, base: Scores, tuned: Scores) -> GateResult:
    base_score, score = _score(base, gate.metric), _score(tuned, gate.metric)
    if score is None:
        return GateResult(metric=gate.metric, passed=False, message=_unmeasured(gate.metric))
    if gate.max is not None:
        return _verdict(gate.metric, score, parse_decimal(gate.max), upper=True)
    if gate.min is not None:
        return _verdict(gate.metric, score, parse_decimal(gate.min), upper=False)
    return _ratio_verdict(gate, base_score, score)


def _verdict(metric: str, value: float, bound: float, upper: bool, what: str = "") -> GateResult:
    passed = value <= bound if upper else value >= bound
    limit = "at most" if upper else "at least"
    by = "" if passed else f": missed by {abs(value - bound):.4g}"
    return GateResult(
        metric=metric, passed=passed, message=f"{what or metric} is {value:.4g}, asked for {limit} {bound:g}{by}"
    )


def _ratio_verdict(gate: Gate, base: float | None, score: float) -> GateResult:
    upper = gate.ratio_to_base_max is not None
    bound = gate.ratio_to_base_max if upper else gate.ratio_to_base_min
    if base is None or bound is None:
        return GateResult(metric=gate.metric, passed=False, message=_unmeasured(f"the base's {gate.metric}"))
    if base == 0:
        passed = score <= 0 if upper else score > 0
        return GateResult(metric=gate.metric, passed=passed, message=f"{gate.metric} is {score:.4g}, the base's is 0")
    what = f"{gate.metric} tuned/base ({score:.4g}/{base:.4g})"
    return _verdict(gate.metric, score / base, parse_decimal(bound), upper, what)


def _unmeasured(what: str) -> str:
    if "/" in what:
        return f"{what} was not measured"
    return f"{what} was not measured; set evaluation.generations above 0 for exactMatch and rougeL"
