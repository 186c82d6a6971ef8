"""Scores of ``evaluation.tasks``: of a model, and which there will be, tried without one.

A score is named ``TASK/METRIC``, with the filter where lm-eval names one (``gsm8k/exact_match/strict-match``). Never
chooses or changes a metric: the number is lm-eval's.
"""

import copy
import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tuneloop_core.api.evaltasks import EvaluationTask
from tuneloop_core.api.finetunejob import EvaluationSettings
from tuneloop_core.constants import GENERATED_TOKEN_COST
from tuneloop_core.stages import Reason

from tuneloop_trainer.encode import Encoder
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.lmeval.loading import load, unfit
from tuneloop_trainer.lmeval.trial import ROWS, longest_tokens, trial, whole_cost
from tuneloop_trainer.model import TunedModel
from tuneloop_trainer.objectives import Tick
from tuneloop_trainer.paths import Paths

log = logging.getLogger("tuneloop")

MOST_SCORES, MOST_BYTES = 24, 800  # of their names as JSON: status and termination message are bounded
LOGITS_BYTES = {"cpu": 2**28, "cuda": 2**30}  # of a batch, where lm-eval does not find its size
TYPICAL_TOKENS = 512
MOST_AT_ONCE = 16


@dataclass
class Meter:
    """How much of the asking is done, by the tokens that there will be in all; told on the way."""

    expected: int
    tick: Tick
    done: int = 0
    counts: bool = True

    def add(self, tokens: int) -> None:
        """So many more; those of lm-eval's trials for a batch size are none."""
        self.done += tokens * self.counts
        self.tick(min(1.0, self.done / max(1, self.expected)))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is computed meanwhile is no progress."""
        self.counts = False
        try:
            yield
        finally:
            self.counts = True


@dataclass(frozen=True)
class Tried:
    """The scores that there will be, and what asking one model costs: tokens of a forward pass, passes of one row."""

    names: list[str]
    tokens: int
    passes: int


def score(
    model: TunedModel, encoder: Encoder, tasks: Sequence[EvaluationTask], paths: Paths, meter: Meter
) -> dict[str, float]:
    """What lm-eval measures of the model as it is now."""
    if not tasks:
        return {}
    training = model.causal.training
    found: dict[str, float] = {}
    try:
        with model.generating():
            asked = _wrapped(model, encoder, meter)
            for task in tasks:
                log.info("asking %s", task.name)
                found |= _named(task.name, _ask(asked, task, paths, task.limit or None))
    finally:
        model.causal.train(training)
    return found


def dry_run(evaluation: EvaluationSettings, encoder: Encoder, paths: Paths) -> Tried:
    """The scores there will be, by asking a few rows of each task with no model behind it.

    Raises ``DatasetInvalid`` for rows that a task cannot ask, for answers that are too long for the model, for a gate
    on a score that there is not, and for more scores than a status holds.
    """
    from transformers import AutoConfig  # noqa: PLC0415 - slow to import

    longest = longest_tokens(AutoConfig.from_pretrained(paths.model, trust_remote_code=False, local_files_only=True))
    names: list[str] = []
    tokens = passes = 0
    for task in evaluation.tasks:
        blank = trial(encoder, longest)
        results = _ask(blank, task, paths, min(task.limit or ROWS, ROWS))
        names += _named(task.name, results)
        tokens += whole_cost(blank.tokens, results["n-samples"], task.limit)
        passes += whole_cost(blank.passes, results["n-samples"], task.limit)
    length = sum(len(json.dumps(name, ensure_ascii=False).encode()) for name in names)
    if len(names) > MOST_SCORES or length > MOST_BYTES:
        message = (
            f"evaluation.tasks: {len(names)} scores, with names of {length} bytes, are more than a status holds "
            f"({MOST_SCORES}, {MOST_BYTES} bytes); list fewer tasks."
        )
        raise StageError(Reason.DATASET_INVALID, message)
    _require_measured(evaluation, names)
    return Tried(names, tokens, passes)


def _require_measured(evaluation: EvaluationSettings, names: Sequence[str]) -> None:
    for gate in evaluation.gates:
        if "/" in gate.metric and gate.metric not in names:
            task = gate.metric.partition("/")[0]
            there = ", ".join(name for name in names if name.startswith(f"{task}/"))
            message = f"evaluation.gates: {gate.metric} is not measured; of {task} there are {there or 'no scores'}."
            raise StageError(Reason.DATASET_INVALID, message)


def _ask(model: Any, task: EvaluationTask, paths: Paths, limit: int | None) -> Any:
    """lm-eval's results."""
    from lm_eval.evaluator import evaluate  # noqa: PLC0415 - slow to import

    loaded = load(task, paths)
    try:
        return evaluate(
            model,
            loaded,
            limit=limit,
            bootstrap_iters=0,
            log_samples=False,
            apply_chat_template=task.chat_template,
            fewshot_as_multiturn=task.chat_template,
        )
    except (StageError, MemoryError):
        raise
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise unfit(task.name, error) from error
    except Exception as error:
        if type(error).__module__.startswith("jinja2"):
            raise unfit(task.name, error) from error
        raise


def _named(task: str, results: Any) -> dict[str, float]:
    """``{"acc,none": 0.5}`` of the task, or of the group, as ``{"task/acc": 0.5}``; no errors of the mean."""
    measured = (results.get("groups") or {}).get(task) or results["results"].get(task) or {}
    found: dict[str, float] = {}
    for key, value in measured.items():
        metric, _, chosen = key.partition(",")
        usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if chosen and usable and not metric.endswith("_stderr"):
            found["/".join([task, metric] + ([chosen] if chosen != "none" else []))] = round(float(value), 6)
    if not found:
        message = (
            f"evaluation.tasks {task}: lm-eval gives no score of its own for {task}; list the tasks that it is made of."
        )
        raise StageError(Reason.DATASET_INVALID, message)
    return found


def _wrapped(model: TunedModel, encoder: Encoder, meter: Meter) -> Any:
    """lm-eval's wrapper around the loaded model; each call looks whether the pod is to end."""
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415 - slow to import

    class Asked(HFLM):  # type: ignore[misc]
        """The model that is being tuned."""

        def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
            meter.add(inps.numel())
            return super()._model_call(inps, *args, **kwargs)

        def _model_generate(self, context: Any, max_length: int, *args: Any, **kwargs: Any) -> Any:
            rows, prompt = context.shape
            meter.add(rows * (prompt + GENERATED_TOKEN_COST * (max_length - prompt)))
            return super()._model_generate(context, max_length, *args, **kwargs)

        def _detect_batch_size(self, *args: Any, **kwargs: Any) -> Any:
            with meter.paused():
                return super()._detect_batch_size(*args, **kwargs)

    config = model.causal.config
    return Asked(
        pretrained=model.causal,
        tokenizer=copy.deepcopy(encoder.tokenizer),  # it sets a token for padding
        backend="causal",
        max_length=longest_tokens(config),
        batch_size=_batch_size(model, config.vocab_size),
        max_batch_size=64,
    )


def _batch_size(model: TunedModel, vocabulary: int) -> str | int:
    """On a device lm-eval finds it by trying; not on CPU, nor where all processes must compute the same passes."""
    if model.machine.device.type != "cpu" and model.root is None:
        return "auto"
    return max(1, min(MOST_AT_ONCE, LOGITS_BYTES[model.machine.device.type] // (4 * TYPICAL_TOKENS * vocabulary)))
