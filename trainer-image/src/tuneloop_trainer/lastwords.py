"""A stage's termination message within what the kubelet takes: JSON that is cut would be no message at all.

What is too long loses parts in the order of ``LIGHTER``, those first that the work folder also has and the status can
do without. Pure.
"""

from collections.abc import Callable
from typing import Any

from tuneloop_core.constants import TERMINATION_MESSAGE_LIMIT
from tuneloop_core.stages import Reason, Termination

Result = dict[str, Any]

FEW_POINTS = 16
SHORT_NOTICE = 80
SHORT_MESSAGE = 300


def fitted(termination: Termination) -> Termination:
    """The message of which ``as_json`` has at most ``TERMINATION_MESSAGE_LIMIT`` bytes.

    A success whose result fits in no way becomes a failure that says so: without a result it would be run for ever.
    """
    for lighten in LIGHTER:
        if termination.result is None or _fits(termination):
            break
        termination = termination.model_copy(update={"result": lighten(termination.result)})
    return termination if _fits(termination) else _without_result(termination)


def as_json(termination: Termination) -> bytes:
    """The message as the kubelet takes it."""
    return termination.model_dump_json(by_alias=True, exclude_none=True).encode()


def shortened(text: str, limit: int) -> str:
    """The text, or its beginning and an ellipsis: at most ``limit`` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _fits(termination: Termination) -> bool:
    return len(as_json(termination)) <= TERMINATION_MESSAGE_LIMIT


def _without_result(termination: Termination) -> Termination:
    if termination.outcome == "Failed":
        message = shortened(termination.message, SHORT_MESSAGE)
        return termination.model_copy(update={"message": message, "result": None})
    message = f"the result of {termination.stage} is too long for a termination message; /work has it whole"
    return Termination(stage=termination.stage, outcome="Failed", reason=Reason.INTERNAL_ERROR, message=message)


def _no_example(result: Result) -> Result:
    return result | {"example": ""} if "example" in result else result


def _few_points(result: Result) -> Result:
    curve = result.get("curve") or []
    last = len(curve) - 1
    kept = [curve[round(n * last / (FEW_POINTS - 1))] for n in range(FEW_POINTS)] if last >= FEW_POINTS else curve
    return result | {"curve": kept} if "curve" in result else result


def _short_notices(result: Result) -> Result:
    short = [each | {"message": shortened(each["message"], SHORT_NOTICE)} for each in result.get("notices", [])]
    return result | {"notices": short} if "notices" in result else result


def _six_digits(result: Result) -> Result:
    return result | {side: _rounded(result[side]) for side in ("base", "tuned") if side in result}


def _rounded(scores: Any) -> Any:
    if isinstance(scores, dict):
        return {name: _rounded(value) for name, value in scores.items() if value is not None}
    return float(f"{scores:.6g}") if isinstance(scores, float) else scores


def _drop(*names: str) -> Callable[[Result], Result]:
    return lambda result: {name: value for name, value in result.items() if name not in names}


LIGHTER: tuple[Callable[[Result], Result], ...] = (
    _no_example,
    _few_points,
    _short_notices,
    _drop("gates"),  # of publish: the operator judged them after train
    _drop("curve"),
    _drop("notices"),
    _six_digits,  # of the scores: none of them is dropped, since gates are judged by them
)
