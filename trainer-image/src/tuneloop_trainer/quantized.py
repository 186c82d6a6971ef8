"""QLoRA (arXiv:2305.14314): the frozen base in 4 bits, NF4 with double quantization, by bitsandbytes on GPU and CPU.

Only what the paper's method is; the adapter on top is the same as without. Never used for serving: what is published is
the adapter for the base as it was, or that base with the adapter merged into it.
"""

import gc
from typing import Any

import torch

from tuneloop_trainer.machine import Machine


def quantized(machine: Machine) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that load linear layers in 4 bits onto the device; the head stays as it is."""
    from transformers import BitsAndBytesConfig  # noqa: PLC0415 - slow to import

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=machine.dtype,
    )
    return {"quantization_config": settings, "device_map": {"": machine.device}}


def keep_differentiable(causal: Any) -> None:
    """Have every 4-bit layer compute its gradients on CPUs with bfloat16 units too.

    There bitsandbytes packs the weights anew at the first pass without gradient, for a kernel that has no backward:
    whatever lies below such a layer would never be trained, and only a warning would tell.
    """
    for module in causal.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def count(parameter: torch.nn.Parameter) -> int:
    """Numbers that a parameter stands for: two in each byte of a 4-bit one."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(torch.Size(state.shape).numel())


def is_quantized(causal: Any) -> bool:
    """Whether a model was loaded in 4 bits."""
    return bool(getattr(causal, "is_loaded_in_4bit", False))


def release_memory() -> None:
    """Give up the memory of a model that nothing names any more: its modules name each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
