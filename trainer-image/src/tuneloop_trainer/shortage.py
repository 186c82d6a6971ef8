"""What to change when memory ran out in training. Never counts memory: the plan did, before."""

from tuneloop_core.api.finetunejob import Method, Training
from tuneloop_core.stages import Reason

from tuneloop_trainer.cgroup import memory_limit
from tuneloop_trainer.errors import StageError

MILDER = {
    "None": "train an adapter instead of all weights (method.adapter LoRA)",
    "DoRA": "take LoRA or QLoRA for method.adapter",
    "LoRA": "take QLoRA for method.adapter",
    "QLoRA": "lower method.lora.rank",
}


def out_of_memory(method: Method, training: Training, accelerators: int, error: BaseException) -> StageError:
    """The error that says what to lower by the method, and the limit that was met where it is the pod's."""
    limit = 0 if accelerators else memory_limit()
    has = f" The pod's limit is {limit / 2**30:.1f} GiB." if limit else ""
    more = "use an accelerator with more memory" if accelerators else "raise pod.resources.limits.memory"
    four_bits = method.adapter == "LoRA" and not method.classifies  # a classifier is not trained over 4 bits
    milder = MILDER["QLoRA" if method.adapter == "LoRA" and not four_bits else method.adapter]
    return StageError(
        Reason.OUT_OF_MEMORY,
        f"memory ran out in training: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}.{has} "
        f"Lower training.maxSequenceLength (now {training.max_sequence_length}), or {milder}, or {more}.",
    )
