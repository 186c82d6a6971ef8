"""Cross-entropy on the trained tokens only, without ever holding their logits whole.

A vocabulary of 150,000 makes logits the largest tensor of a training step by far. Here they are computed a chunk at a
time, and the gradient of the hidden states with them, so that backward has nothing left to do (the head is frozen).
The same idea is in Liger's FusedLinearCrossEntropy (arXiv:2410.10989).
"""

from dataclasses import dataclass
from typing import Any

import torch

CHUNK_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}


@dataclass(frozen=True)
class Head:
    """The frozen last layer: logits = cap(scale * (hidden @ weight.T + bias))."""

    weight: torch.Tensor  # (vocabulary, hidden size)
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float = 0.0

    @classmethod
    def of(cls, model: torch.nn.Module) -> "Head":
        """The head of a causal language model, with what its configuration says is done to the logits."""
        layer = model.get_output_embeddings()  # type: ignore[operator]
        config: Any = model.config
        scale = getattr(config, "logit_scale", None) or 1.0
        divisor = getattr(config, "logits_scaling", None) or 1.0
        softcap = getattr(config, "final_logit_softcapping", None) or 0.0
        return cls(layer.weight.detach(), _detached(layer.bias), scale / divisor, softcap)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits in float32, (tokens, vocabulary)."""
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits


def summed_loss(hidden: torch.Tensor, targets: torch.Tensor, head: Head) -> torch.Tensor:
    """Sum of the cross-entropy in nats over tokens; ``hidden`` (tokens, hidden size), ``targets`` (tokens,)."""
    loss: torch.Tensor = _ChunkedLoss.apply(hidden, targets, head)  # type: ignore[no-untyped-call]
    return loss


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, head: Head) -> torch.Tensor:
        rows = max(1, CHUNK_BYTES[hidden.device.type] // (head.weight.shape[0] * 4))
        total = torch.zeros(
            (), dtype=torch.float64 if hidden.device.type == "cpu" else torch.float32, device=hidden.device
        )
        gradients = []
        for part, wanted in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True):
            loss, gradient = _chunk(part, wanted, head, ctx.needs_input_grad[0])
            total += loss
            gradients.append(gradient)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None


def _chunk(
    hidden: torch.Tensor, targets: torch.Tensor, head: Head, with_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss of a chunk and its gradient by the hidden states: (softmax - one-hot) through the head."""
    logits = head.logits(hidden)
    normaliser = logits.logsumexp(dim=-1, keepdim=True)
    loss = (normaliser - logits.gather(1, targets.unsqueeze(1))).sum()
    if not with_gradient:
        return loss, hidden
    slope = (1 - (logits / head.softcap) ** 2) if head.softcap else None
    error = logits.sub_(normaliser).exp_()
    error.scatter_add_(1, targets.unsqueeze(1), torch.full_like(targets, -1, dtype=error.dtype).unsqueeze(1))
    if slope is not None:
        error *= slope
    if head.scale != 1.0:
        error *= head.scale
    return loss, error.to(head.weight.dtype) @ head.weight


def _detached(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else bias.detach()
