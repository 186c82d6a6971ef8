"""``python -m tuneloop_trainer fetch|check|train|publish``: one stage, its input from the environment.

Only decides which module runs, and sets what libraries read from the environment before they are imported.
"""

import importlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import pydantic
from tuneloop_core.constants import EXIT_TERMINATED, STAGE_INPUT_ENV
from tuneloop_core.stages import CheckInput, Stage

from tuneloop_trainer.paths import Paths
from tuneloop_trainer.ranks import run_among_others
from tuneloop_trainer.stage import always_holds, leave_all, run_stage

STAGES = (Stage.FETCH, Stage.CHECK, Stage.TRAIN, Stage.PUBLISH)


def main(arguments: list[str]) -> int:
    """Run the stage that the command line names; the exit code is the contract's."""
    if len(arguments) != 1 or arguments[0] not in STAGES:
        sys.stderr.write(f"usage: python -m tuneloop_trainer {'|'.join(STAGES)}\n")
        return 64
    stage = Stage(arguments[0])
    signal.signal(signal.SIGTERM, _end)
    _prepare_environment(stage)
    paths = Paths.from_environment()
    code = run_among_others(paths) if stage is Stage.TRAIN else None
    if code is not None:
        return code
    module = importlib.import_module(f"tuneloop_trainer.{stage}")
    holds, tidy = getattr(module, "holds", always_holds), getattr(module, "tidy", leave_all)
    return run_stage(stage, module.run, paths, holds, tidy)


def _leave(code: int) -> NoReturn:
    """End at once: taking down an interpreter with torch in it costs some five seconds of a processor, and after
    SIGTERM the kubelet waits no longer than the grace period. What is to be kept has been written and synced.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end(_number: int, _frame: FrameType | None) -> None:
    """The first process of a container ignores SIGTERM unless it says otherwise; training says more, once it runs."""
    sys.exit(EXIT_TERMINATED)


def _prepare_environment(stage: Stage) -> None:
    """The hub's native client follows its own URLs, so it is off; only fetch and an export ask a hub at all."""
    os.environ["HF_HUB_DISABLE_XET"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if stage not in (Stage.FETCH, Stage.PUBLISH):
        os.environ["HF_HUB_OFFLINE"] = "1"
    # A tokenizer needs no torch: without it transformers starts in a third of the time. lm-eval does need it.
    if stage is Stage.CHECK and not _asks_tasks(os.environ.get(STAGE_INPUT_ENV, "")):
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def _asks_tasks(text: str) -> bool:
    """Whether the input names evaluation.tasks; one that cannot be read is refused by the stage itself, in words."""
    try:
        return bool(CheckInput.model_validate_json(text).evaluation.get("tasks"))
    except pydantic.ValidationError:
        return False


if __name__ == "__main__":
    _leave(main(sys.argv[1:]))
