"""A task asked with no model behind it: which scores there will be, and how much asking costs.

The cost is in tokens of a forward pass, from a few rows: what plan and progress count in. A generated token counts as
several, as in ``evaluation.generation_tokens``. Never asks a model.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tuneloop_core.constants import GENERATED_TOKEN_COST
from tuneloop_core.stages import Reason

from tuneloop_trainer.encode import Encoder
from tuneloop_trainer.errors import StageError

ROWS = 4  # of each task
LONGEST_TOKENS = 4096
DEFAULT_ANSWER = 256  # tokens, lm-eval's own


def longest_tokens(config: Any) -> int:
    """Tokens of the longest prompt that is asked of a model, with its answer."""
    return min(LONGEST_TOKENS, getattr(config, "max_position_embeddings", None) or LONGEST_TOKENS)


def trial(encoder: Encoder, longest: int) -> Any:
    """lm-eval's model for trying tasks, with this model's tokenizer.

    ``tokens`` counts by task what it was asked, ``passes`` in how many passes of one row: one a generated token.
    """
    from lm_eval.models.dummy import DummyLM  # noqa: PLC0415 - slow to import
    from lm_eval.models.utils import normalize_gen_kwargs  # noqa: PLC0415

    class Trial(DummyLM):  # type: ignore[misc]
        """No model; every answer is empty."""

        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = encoder.tokenizer
            self.tokens: Counter[str] = Counter()
            self.passes: Counter[str] = Counter()

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            """Answers of one token after the same prompt are read off one pass."""
            passes = {(each.task_name, tuple(self._ids("".join(each.args))[:-1])) for each in requests}
            for task, ids in passes:
                self._count(task, min(len(ids), longest), 1)
            return [(-1.0, False)] * len(requests)

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            for each in requests:
                length = len(self._ids(each.args[0]))
                self._count(each.task_name, length, -(-length // longest))
            return [-1.0] * len(requests)

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            for each in requests:
                prompt, settings = each.args
                answer = normalize_gen_kwargs(settings, DEFAULT_ANSWER)["max_gen_toks"]
                _require_room(each.task_name, answer, longest)
                seen = min(len(self._ids(prompt)), longest - answer)
                self._count(each.task_name, seen + GENERATED_TOKEN_COST * answer, 1 + answer)
            return [""] * len(requests)

        def _count(self, task: str, tokens: int, passes: int) -> None:
            self.tokens[task] += tokens
            self.passes[task] += passes

        def _ids(self, text: str) -> list[int]:
            found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            return found

    return Trial()


def whole_cost(tried: Mapping[str, int], counts: Mapping[str, Mapping[str, int]], limit: int) -> int:
    """Tokens or passes of asking all rows (0) or ``limit`` of each task, from those of the ``effective`` rows."""
    rows = {task: min(limit or count["original"], count["original"]) for task, count in counts.items()}
    return sum(round(tried.get(task, 0) * rows[task] / max(1, counts[task]["effective"])) for task in counts)


def _require_room(task: str, answer: int, longest: int) -> None:
    if answer < longest:
        return
    message = (
        f"evaluation.tasks {task}: its answers may have {answer} tokens, and prompt and answer together at most "
        f"{longest} with this model. Lower max_gen_toks in its generation_kwargs, or leave the task out."
    )
    raise StageError(Reason.DATASET_INVALID, message)
