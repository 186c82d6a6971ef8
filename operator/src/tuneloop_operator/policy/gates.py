"""Gates: must the tuned model be published? Says by how much a score passed or missed. Pure."""

from dataclasses import dataclass

from tuneloop_core.api.finetunejob import Gate
from tuneloop_core.api.finetunejob_status import GateStatus, ScoresStatus
from tuneloop_core.api.formats import parse_decimal

FIELDS = {"evalLoss": "eval_loss", "perplexity": "perplexity", "exactMatch": "exact_match", "rougeL": "rouge_l"}


@dataclass(frozen=True)
class Bound:
    """One bound in absolute terms."""

    limit: float
    at_most: bool
    words: str


def evaluate(gates: list[Gate], base: ScoresStatus | None, tuned: ScoresStatus | None) -> list[GateStatus]:
    """One verdict a gate, in their order; a score that was not measured does not pass."""
    return [_evaluate(gate, base or ScoresStatus(), tuned or ScoresStatus()) for gate in gates]


def _evaluate(gate: Gate, base: ScoresStatus, tuned: ScoresStatus) -> GateStatus:
    found = getattr(tuned, FIELDS[gate.metric])
    reference = getattr(base, FIELDS[gate.metric])
    bound = _bound(gate, reference)
    if found is None or bound is None:
        missing = (
            "was not measured; raise evaluation.generations or maxSamples" if found is None else "has no base score"
        )
        return GateStatus(metric=gate.metric, passed=False, message=f"{gate.metric} {missing}")
    passed = found <= bound.limit if bound.at_most else found >= bound.limit
    return GateStatus(metric=gate.metric, passed=passed, message=_words(gate.metric, found, bound, passed=passed))


def _bound(gate: Gate, base: float | None) -> Bound | None:
    if gate.max is not None:
        return Bound(parse_decimal(gate.max), at_most=True, words=f"max {gate.max}")
    if gate.min is not None:
        return Bound(parse_decimal(gate.min), at_most=False, words=f"min {gate.min}")
    if base is None:
        return None
    if gate.ratio_to_base_max is not None:
        words = f"{gate.ratio_to_base_max} x base {base:.4g}"
        return Bound(parse_decimal(gate.ratio_to_base_max) * base, at_most=True, words=words)
    if gate.ratio_to_base_min is not None:
        words = f"{gate.ratio_to_base_min} x base {base:.4g}"
        return Bound(parse_decimal(gate.ratio_to_base_min) * base, at_most=False, words=words)
    return None


def _words(metric: str, found: float, bound: Bound, *, passed: bool) -> str:
    sign = ("≤" if bound.at_most else "≥") if passed else (">" if bound.at_most else "<")
    verdict = "passed by" if passed else "missed by"
    return f"{metric} {found:.4g} {sign} {bound.limit:.4g} ({bound.words}), {verdict} {abs(found - bound.limit):.3g}"
