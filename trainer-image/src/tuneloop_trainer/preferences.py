"""Losses that compare whole answers: DPO and KTO, as functions of the answers' log-probabilities.

The formulas are TRL's (tested against the installed one): DPO is its ``sigmoid`` loss (arXiv:2305.18290, equation 7),
KTO its ``kto`` loss (arXiv:2402.01306, equation 7). An answer's log-probability is the sum over its tokens. Never
holds logits whole: what the loss is worth by each log-probability is found first, then it weighs the tokens.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import logsigmoid

from tuneloop_trainer.loss import summed_loss, token_losses
from tuneloop_trainer.model import TunedModel
from tuneloop_trainer.tokens import Document


def dpo_losses(ratios: torch.Tensor, beta: float) -> torch.Tensor:
    """Loss of each pair; ``ratios`` (pairs, 2): log-probability less the reference's, of the liked answer first."""
    return -logsigmoid(beta * (ratios[:, 0] - ratios[:, 1]))


def kto_losses(ratios: torch.Tensor, liked: torch.Tensor, divergence: float, beta: float) -> torch.Tensor:
    """Loss of each answer; ``liked`` are booleans, ``divergence`` is how far the model is from its reference, nats."""
    sign = torch.where(liked, 1.0, -1.0).to(ratios.dtype)
    return 1 - torch.sigmoid(beta * sign * (ratios - divergence))


@torch.no_grad()
def log_probabilities(model: TunedModel, documents: list[Document]) -> torch.Tensor:
    """Log-probability in nats of the trained tokens of each document of a pack, float64 on the CPU."""
    return _sums(model, *model.trained(documents), len(documents)).cpu()


def loss_of_answers(
    model: TunedModel, documents: list[Document], function: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """A scalar ``function`` of the documents' log-probabilities, with the gradient of the model's parameters."""
    hidden, targets, owners = model.trained(documents)
    found = _sums(model, hidden.detach(), targets, owners, len(documents)).cpu().requires_grad_()
    with torch.enable_grad():
        value = function(found)
        (slopes,) = torch.autograd.grad(value, found)
    weights = -slopes.to(owners.device)[owners].float()
    surrogate = summed_loss(hidden, targets, model.head, weights)
    return surrogate - surrogate.detach() + value.detach().to(surrogate.device)


@torch.no_grad()
def _sums(
    model: TunedModel, hidden: torch.Tensor, targets: torch.Tensor, owners: torch.Tensor, count: int
) -> torch.Tensor:
    losses = token_losses(hidden, targets, model.head).double()
    return torch.zeros(count, dtype=losses.dtype, device=losses.device).index_add_(0, owners, -losses)
