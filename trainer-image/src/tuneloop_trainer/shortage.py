"""What to change when memory ran out in training. Never counts memory: the plan did, before.

A process whose model is split with others cannot take smaller packs within a step: the others are waiting in a pass
that it will not finish. So the try ends, and leaves half the size of its packs for the next.
"""

from pathlib import Path

from tuneloop_core.api.finetunejob import Method, Training
from tuneloop_core.stages import Reason, TrainInput

from tuneloop_trainer.cgroup import memory_limit
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.files import write_atomic

MILDER = {
    "None": "train an adapter instead of all weights (method.adapter LoRA)",
    "DoRA": "take LoRA or QLoRA for method.adapter",
    "LoRA": "take QLoRA for method.adapter",
    "QLoRA": "lower method.lora.rank",
}


LEFT = "pack-tokens"  # a file beside the checkpoints
SMALLEST_PACK = 256


def fitted(stage_input: TrainInput, folder: Path) -> TrainInput:
    """The input, with the packs that an earlier try which ran out of memory left."""
    path = folder / LEFT
    if not stage_input.shard or not path.is_file():
        return stage_input
    return stage_input.model_copy(update={"pack_tokens": min(int(path.read_text()), stage_input.pack_tokens)})


def leave_smaller(stage_input: TrainInput, folder: Path) -> str:
    """Leave smaller packs for the next try of a split model, and say so; nothing where they would be too small."""
    half = stage_input.pack_tokens // 2
    if not stage_input.shard or half < SMALLEST_PACK:
        return ""
    write_atomic(folder / LEFT, str(half).encode())
    return f" The next try takes packs of {half} tokens."


def out_of_memory(
    method: Method, training: Training, accelerators: int, error: BaseException, left: str = ""
) -> StageError:
    """The error that says what to lower by the method, the limit that was met where it is the pod's, and ``left``."""
    limit = 0 if accelerators else memory_limit()
    has = f" The pod's limit is {limit / 2**30:.1f} GiB." if limit else ""
    more = "use an accelerator with more memory" if accelerators else "raise pod.resources.limits.memory"
    four_bits = method.adapter == "LoRA" and not method.classifies  # a classifier is not trained over 4 bits
    milder = MILDER["QLoRA" if method.adapter == "LoRA" and not four_bits else method.adapter]
    return StageError(
        Reason.OUT_OF_MEMORY,
        f"memory ran out in training: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}.{has}"
        f"{left} "
        f"Lower training.maxSequenceLength (now {training.max_sequence_length}), or {milder}, or {more}.",
    )
