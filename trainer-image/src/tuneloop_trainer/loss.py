"""Cross-entropy on the trained tokens only, without ever holding their logits whole.

A vocabulary of 150,000 makes logits the largest tensor of a training step by far. Here they are computed a chunk at a
time, and the gradients of the hidden states and of a head that is trained with them: backward has nothing left to do.
The same idea is in Liger's FusedLinearCrossEntropy (arXiv:2410.10989).
"""

from dataclasses import dataclass
from typing import Any

import torch

CHUNK_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}


@dataclass(frozen=True)
class Head:
    """The last layer: logits = cap(scale * (hidden @ weight.T + bias)). It is trained where its weight wants that."""

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
        return cls(layer.weight, layer.bias, scale / divisor, softcap)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits in float32, (tokens, vocabulary)."""
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits


def summed_loss(
    hidden: torch.Tensor, targets: torch.Tensor, head: Head, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum of the cross-entropy in nats over tokens; ``hidden`` (tokens, hidden size), ``targets`` (tokens,).

    ``weights`` (tokens,) are constants that the tokens' losses are multiplied with.
    """
    loss: torch.Tensor = _ChunkedLoss.apply(hidden, targets, head, weights, head.weight, head.bias)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def token_losses(hidden: torch.Tensor, targets: torch.Tensor, head: Head) -> torch.Tensor:
    """Cross-entropy in nats of each token, float32, without gradient."""
    rows = _rows(hidden, head)
    parts = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    return torch.cat([torch.nn.functional.cross_entropy(head.logits(h), t, reduction="none") for h, t in parts])


def _rows(hidden: torch.Tensor, head: Head) -> int:
    return max(1, CHUNK_BYTES[hidden.device.type] // (head.weight.shape[0] * 4))


class _ChunkedLoss(torch.autograd.Function):
    """``weight`` and ``bias`` are the head's own, named so that autograd sees them."""

    @staticmethod
    def forward(  # noqa: PLR0913 - what autograd must see
        ctx: Any,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        head: Head,
        scales: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        rows = _rows(hidden, head)
        total = torch.zeros(
            (), dtype=torch.float64 if hidden.device.type == "cpu" else torch.float32, device=hidden.device
        )
        sums = _HeadSums(weight if ctx.needs_input_grad[4] else None, bias if ctx.needs_input_grad[5] else None)
        wants = ctx.needs_input_grad[0] or sums.wants
        gradients = []
        for start in range(0, len(hidden), rows):
            part, window = hidden[start : start + rows], slice(start, start + rows)
            loss, error = _chunk(part, targets[window], head, None if scales is None else scales[window], wants)
            total += loss
            if error is not None:
                gradients.append(error.to(weight.dtype) @ weight)
                sums.add(error, part)
        if wants:
            ctx.save_for_backward(torch.cat(gradients), sums.weight, sums.bias)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient, weight, bias = ctx.saved_tensors
        return (
            gradient * upstream.to(gradient.dtype) if ctx.needs_input_grad[0] else None,
            None,
            None,
            None,
            None if weight is None else weight.mul_(upstream),
            None if bias is None else bias.mul_(upstream),
        )


class _HeadSums:
    """Gradients of a trained head, summed over chunks in its own number format; None for what is frozen."""

    def __init__(self, weight: torch.Tensor | None, bias: torch.Tensor | None) -> None:
        self.weight = None if weight is None else torch.zeros_like(weight)
        self.bias = None if bias is None else torch.zeros_like(bias)
        self.wants = self.weight is not None or self.bias is not None

    def add(self, error: torch.Tensor, hidden: torch.Tensor) -> None:
        """Add a chunk: ``error`` (tokens, vocabulary) is the loss by its logits."""
        if self.weight is not None:
            self.weight.addmm_(error.to(hidden.dtype).t(), hidden)
        if self.bias is not None:
            self.bias += error.sum(0).to(self.bias.dtype)


def _chunk(
    hidden: torch.Tensor, targets: torch.Tensor, head: Head, scales: torch.Tensor | None, with_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Summed loss of a chunk and, where asked for, its gradient by the product with the head: softmax - one-hot."""
    logits = head.logits(hidden)
    normaliser = logits.logsumexp(dim=-1, keepdim=True)
    losses = normaliser - logits.gather(1, targets.unsqueeze(1))
    loss = losses.sum() if scales is None else (losses.squeeze(1) * scales).sum()
    if not with_gradient:
        return loss, None
    slope = (1 - (logits / head.softcap) ** 2) if head.softcap else None
    error = logits.sub_(normaliser).exp_()
    error.scatter_add_(1, targets.unsqueeze(1), torch.full_like(targets, -1, dtype=error.dtype).unsqueeze(1))
    if slope is not None:
        error *= slope
    if head.scale != 1.0:
        error *= head.scale
    if scales is not None:
        error *= scales.unsqueeze(1)
    return loss, error
