"""The protocol around every stage: input in, result file, last words, exit code.

A stage's own module only computes; here it is made idempotent (a finished result for the same input is answered at
once) and every failure becomes a reason and a message. Never knows what a stage does.
"""

import hashlib
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import pydantic
from tuneloop_core.constants import STAGE_INPUT_ENV
from tuneloop_core.stages import (
    CheckInput,
    FetchInput,
    PublishInput,
    Reason,
    Stage,
    Termination,
    TrainInput,
    Wire,
)

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.files import store_full_told, write_json
from tuneloop_trainer.lastwords import as_json, fitted, shortened
from tuneloop_trainer.paths import Paths

log = logging.getLogger("tuneloop")

INPUTS: dict[Stage, type[FetchInput] | type[CheckInput] | type[TrainInput] | type[PublishInput]] = {
    Stage.FETCH: FetchInput,
    Stage.CHECK: CheckInput,
    Stage.TRAIN: TrainInput,
    Stage.PUBLISH: PublishInput,
}

StageFunction = Callable[[Any, Paths], Wire]
Holds = Callable[[dict[str, Any], Paths], bool]
Tidy = Callable[[Paths], None]


def always_holds(_result: dict[str, Any], _paths: Paths) -> bool:
    """A result that cannot go stale."""
    return True


def leave_all(_paths: Paths) -> None:
    """A stage whose work is needed after it."""


class StageRecord(Wire):
    """``/work/<stage>/result.json``: the result, and the digest of the input it belongs to."""

    input_digest: str
    result: dict[str, Any]


def run_stage(  # noqa: PLR0913 - what stages differ in
    stage: Stage,
    function: StageFunction,
    paths: Paths,
    holds: Holds = always_holds,
    tidy: Tidy = leave_all,
    *,
    leads: bool = True,
) -> int:
    """Run one stage under the protocol; returns the exit code. Never raises.

    ``holds`` says whether an earlier result is still true; one that is not is computed again. ``tidy`` removes what
    nobody needs once the result is written. Of several processes only the one that ``leads`` answers with the result.
    """
    begin_log()
    try:
        termination = fitted(_succeed(stage, function, paths, holds, leads=leads))
        tidy(paths)
        code = 0 if termination.outcome == "Succeeded" else 1
    except StageError as error:
        log.error("%s: %s", error.reason, error.message)  # noqa: TRY400 - the words are enough
        termination, code = _failure(stage, error.reason, error.message), error.exit_code
    except Exception as error:
        log.exception("unexpected failure")
        message = f"{type(error).__name__}: {error}. The pod's log has the traceback."
        termination, code = _failure(stage, Reason.INTERNAL_ERROR, message), 1
    if leads or code:
        _say_last_words(termination, paths)
    return code


def begin_log() -> None:
    """Log to the pod's log."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout, force=True)
    for name in ("httpx2", "httpcore2", "botocore"):  # they log whole URLs, and a query may be a signature
        logging.getLogger(name).setLevel(logging.WARNING)


def fail(stage: Stage, error: StageError, paths: Paths) -> int:
    """Leave the last words; returns the exit code."""
    log.error("%s: %s", error.reason, error.message)
    _say_last_words(_failure(stage, error.reason, error.message), paths)
    return error.exit_code


def end_at_once(stage: Stage, error: StageError, paths: Paths) -> NoReturn:
    """Leave the last words and end the process, from any thread: for a process whose main thread hangs."""
    code = fail(stage, error, paths)
    sys.stdout.flush()
    os._exit(code)


def input_digest(text: str) -> str:
    """The digest that ties results and checkpoints to one input."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def read_record(stage: Stage, paths: Paths) -> StageRecord | None:
    """A stage's finished result, or None."""
    path = paths.result(stage)
    if not path.is_file():
        return None
    try:
        return StageRecord.model_validate_json(path.read_bytes())
    except pydantic.ValidationError:
        return None


def _succeed(stage: Stage, function: StageFunction, paths: Paths, holds: Holds, *, leads: bool) -> Termination:
    text = os.environ.get(STAGE_INPUT_ENV, "")
    stage_input = _parse_input(stage, text)
    digest = input_digest(text)
    record = read_record(stage, paths)
    if record is not None and record.input_digest == digest and holds(record.result, paths):
        log.info("%s was finished before; answering from its result", stage)
        return _success(stage, record.result)
    with store_full_told(paths.work, f"the {stage} stage"):
        result = function(stage_input, paths).model_dump(mode="json", by_alias=True)
        if not leads:
            return _success(stage, {})
        write_json(paths.result(stage), StageRecord(input_digest=digest, result=result).model_dump(by_alias=True))
    return _success(stage, result)


def _parse_input(stage: Stage, text: str) -> Wire:
    try:
        return INPUTS[stage].model_validate_json(text)
    except pydantic.ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5])
        message = f"{STAGE_INPUT_ENV} is not the input of {stage}: {problems}. Operator and trainer image differ?"
        raise StageError(Reason.INTERNAL_ERROR, message) from None


def _success(stage: Stage, result: dict[str, Any]) -> Termination:
    return Termination(stage=stage, outcome="Succeeded", result=result)


def _failure(stage: Stage, reason: Reason, message: str) -> Termination:
    return Termination(stage=stage, outcome="Failed", reason=reason, message=shortened(message, 1024))


def _say_last_words(termination: Termination, paths: Paths) -> None:
    """Write the termination message, thinner if it is too long for the kubelet.

    That a peer was lost is the least of what a pod can say: it never replaces the words of another of its processes.
    """
    try:
        if termination.reason is Reason.PEER_LOST and _has_words(paths):
            return
        paths.termination_log.parent.mkdir(parents=True, exist_ok=True)
        paths.termination_log.write_bytes(as_json(fitted(termination)))
    except OSError as error:
        log.warning("no termination message could be written: %s", error)


def _has_words(paths: Paths) -> bool:
    return paths.termination_log.is_file() and paths.termination_log.stat().st_size > 0
