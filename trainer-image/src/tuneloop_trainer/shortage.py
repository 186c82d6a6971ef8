"""What to change when memory ran out in training. Never counts memory: the plan did, before.

A process whose model is split with others cannot take smaller packs within a step: the others are waiting in a pass
that it will not finish. So the try ends, and leaves half the size of its packs for another, where that helps.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tuneloop_core.api.finetunejob import Method, Training
from tuneloop_core.stages import Reason, TrainInput

from tuneloop_trainer.cgroup import memory_limit
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.files import write_atomic

LOWER_RANK = "lower method.lora.rank"
MILDER = {
    "None": "train an adapter instead of all weights (method.adapter LoRA)",
    "DoRA": "take LoRA or QLoRA for method.adapter",
    "LoRA": "take QLoRA for method.adapter",
    "QLoRA": LOWER_RANK,
}
MILDER_UNQUANTIZED = {**MILDER, "DoRA": "take LoRA for method.adapter", "LoRA": LOWER_RANK}
"""Where 4 bits are no way out: a classifier is not trained over them, and a model in 4 bits is not split (ADR 0070)."""

LEFT = "pack-tokens"  # a file beside the checkpoints


def with_packs_left(stage_input: TrainInput, folder: Path) -> TrainInput:
    """The input, with the packs that an earlier try which ran out of memory left."""
    path = folder / LEFT
    if not stage_input.shard or not path.is_file():
        return stage_input
    return stage_input.model_copy(update={"pack_tokens": min(int(path.read_text()), stage_input.pack_tokens)})


def leave_packs(tokens: int, folder: Path) -> str:
    """Leave packs of so many tokens for another try, and say so; with 0 nothing is left: smaller ones do not help."""
    if not tokens:
        return ""
    write_atomic(folder / LEFT, str(tokens).encode())
    return f" Another try takes packs of {tokens} tokens."


@contextmanager
def memory_told(stage_input: TrainInput, leave: Callable[[], str] = str) -> Iterator[None]:
    """Turn memory that ran out into ``OutOfMemory``; ``leave`` does what another try goes by, and says it."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise out_of_memory(stage_input, error, leave()) from error


def out_of_memory(stage_input: TrainInput, error: BaseException, left: str = "") -> StageError:
    """The error that says what to lower by the method, the limit that was met where it is the pod's, and ``left``."""
    training = Training.model_validate(stage_input.training)
    limit = 0 if stage_input.accelerators else memory_limit()
    has = f" The pod's limit is {limit / 2**30:.1f} GiB." if limit else ""
    return StageError(
        Reason.OUT_OF_MEMORY,
        f"memory ran out in training: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}.{has}"
        f"{left} Lower training.maxSequenceLength (now {training.max_sequence_length}), or {_milder(stage_input)}, or "
        f"{_more(stage_input)}.",
    )


def _milder(stage_input: TrainInput) -> str:
    method = Method.model_validate(stage_input.method)
    return (MILDER_UNQUANTIZED if stage_input.shard or method.classifies else MILDER)[method.adapter]


def _more(stage_input: TrainInput) -> str:
    """What more memory would be; a share of a split model gets smaller with every process."""
    memory = "use an accelerator with more memory" if stage_input.accelerators else "raise pod.resources.limits.memory"
    if not stage_input.shard:
        return memory
    counts = [f"resources.nodes (now {stage_input.nodes})"]
    if stage_input.accelerators:
        counts.insert(0, f"resources.accelerators (now {stage_input.accelerators})")
    further = "which splits the model further (routed experts no further than by their number)"
    return f"raise {' or '.join(counts)}, {further}, or {memory}"
