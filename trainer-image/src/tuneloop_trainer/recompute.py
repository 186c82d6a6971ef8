"""Recompute (arXiv:1604.06174): a layer keeps its input only and is computed again in backward.

Turned on where the plan says that training does not fit otherwise. Never in evaluation or generation, where nothing is
kept anyway and transformers would give up its cache of keys and values.
"""

from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer


def enable(causal: Any) -> int:
    """Have a transformers model recompute its layers whenever gradients are wanted; returns how many those are."""
    causal.gradient_checkpointing_enable({"use_reentrant": False})
    layers = [module for module in causal.modules() if isinstance(module, GradientCheckpointingLayer)]

    def switch(on: bool) -> None:
        for layer in layers:
            layer.training = on  # of the layer alone: dropout inside of it stays off

    causal.base_model.register_forward_pre_hook(lambda *_: switch(torch.is_grad_enabled()))
    causal.base_model.register_forward_hook(lambda *_: switch(False), always_call=True)
    return len(layers)
