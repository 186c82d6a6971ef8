"""The forward and backward of a LoRA layer with as few passes over memory as it takes.

PEFT's own forward makes three full-size temporaries a layer (the low-rank product, its scaled copy, the sum) and casts
in between. Here the low-rank product is added in place by the matrix multiplication itself, and backward is written
out. Same numbers, same parameters, same file format; layers that are anything but plain LoRA keep PEFT's forward.
"""

from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as LoRALinear


def fuse(model: torch.nn.Module) -> int:
    """Give every plain LoRA layer of a model the fused forward; returns how many there are."""
    layers = [module for module in model.modules() if isinstance(module, LoRALinear) and _is_plain(module)]
    for layer in layers:
        layer.forward = partial(_forward, layer)
    return len(layers)


def _is_plain(layer: Any) -> bool:
    """One adapter on a torch Linear: no dropout, no bias, no DoRA or other variant."""
    (name,) = layer.active_adapters if len(layer.active_adapters) == 1 else (None,)
    return (
        name is not None
        and isinstance(layer.base_layer, torch.nn.Linear)
        and isinstance(layer.lora_dropout[name], torch.nn.Identity)
        and not layer.fan_in_fan_out
        and not layer.lora_variant
        and layer.lora_B[name].bias is None
    )


def _forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    base = layer.base_layer
    if layer.disable_adapters or layer.merged or args or kwargs:
        out: torch.Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return out
    (name,) = layer.active_adapters
    a, b, scale = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    flat = x.reshape(-1, x.shape[-1])
    flat_out: torch.Tensor = _PlainLoRA.apply(flat, base.weight, base.bias, a, b, scale)  # type: ignore[no-untyped-call]
    return flat_out.view(*x.shape[:-1], -1)


class _PlainLoRA(torch.autograd.Function):
    """y = x W' + bias + scale (x A') B', where ' is transposed; W and bias are frozen."""

    @staticmethod
    def forward(  # noqa: PLR0913 - the parts of a layer
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        low = x @ a.t()
        ctx.save_for_backward(x, low, weight, a, b)
        ctx.scale = scale
        return torch.nn.functional.linear(x, weight, bias).addmm_(low, b.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, low, weight, a, b = ctx.saved_tensors
        into_low = (upstream @ b).mul_(ctx.scale)
        into_x = (upstream @ weight).addmm_(into_low, a) if ctx.needs_input_grad[0] else None
        return into_x, None, None, into_low.t() @ x, (upstream.t() @ low).mul_(ctx.scale), None
