"""AdamW over float32 copies of what is trained, gradients summed in float32, and a cosine schedule with warm-up.

A bfloat16 weight cannot hold the small updates of fine-tuning, and a bfloat16 sum loses the small gradients; both are
therefore kept in float32 here; weights that are float32 are their own copies. State is plain tensors by name, so that
a checkpoint is a safetensors file and resuming is exact.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import torch

from tuneloop_trainer.peers import ALONE, Peers

BETAS = (0.9, 0.999)
EPSILON = 1e-8
MAX_NORM = 1.0
WARMUP_SHARE = 0.03


class MasterAdam:
    """Optimises named parameters; call ``step`` after the microbatches of a step went backward.

    With ``peers`` each rank sums the gradients of its own packs, and ``gather`` makes them the step's.
    """

    def __init__(self, parameters: dict[str, torch.nn.Parameter], peers: Peers = ALONE) -> None:
        self._parameters, self._peers = parameters, peers
        self._masters = {name: p.detach().float() for name, p in parameters.items()}  # float32: the same memory
        self._flat, self._sums = _views(self._masters)
        self._first = {name: torch.zeros_like(master) for name, master in self._masters.items()}
        self._second = {name: torch.zeros_like(master) for name, master in self._masters.items()}
        self.steps = 0
        for name, parameter in parameters.items():
            parameter.register_post_accumulate_grad_hook(self._collector(name))  # type: ignore[no-untyped-call]

    def gather(self) -> None:
        """Add up what all ranks have summed: one message of all gradients, in float32, a step."""
        self._peers.sum_(self._flat)

    def align(self) -> None:
        """Begin with the leader's weights, whatever each rank was dealt."""
        for name, parameter in self._parameters.items():
            self._peers.spread_(self._masters[name])
            parameter.data.copy_(self._masters[name])

    def step(self, learning_rate: float) -> float:
        """One update; returns the gradient's norm before clipping (not finite if a gradient is not)."""
        norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(s) for s in self._sums.values()])))
        if not math.isfinite(norm):
            return norm
        self.steps += 1
        scale = min(1.0, MAX_NORM / (norm + 1e-6))
        for name, parameter in self._parameters.items():
            self._update(name, parameter, scale, learning_rate)
        self.clear()
        return norm

    def clear(self) -> None:
        """Forget the gradients of an unfinished step."""
        self._flat.zero_()

    def state(self) -> dict[str, torch.Tensor]:
        """All tensors that resuming needs, by ``<kind>.<parameter>``; gradients only within a step: else they are 0."""
        within = bool(self._flat.any())
        return {
            f"{kind}.{name}": tensor.contiguous()
            for kind, name, tensor in self._tensors()
            if kind != "gradient" or within
        }

    @torch.no_grad()
    def load(self, state: Mapping[str, torch.Tensor], steps: int) -> None:
        """Restore what ``state`` gave on the leader, who tells the others; raises ``KeyError`` if one is missing."""
        for kind, name, tensor in self._tensors():
            if self._peers.leads:
                _restore(tensor, state, kind, name)
            self._peers.spread_(tensor)
        self.steps = steps
        for name, parameter in self._parameters.items():
            parameter.copy_(self._masters[name])

    def _tensors(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        kinds = {"weight": self._masters, "gradient": self._sums, "first": self._first, "second": self._second}
        for kind, tensors in kinds.items():
            for name, tensor in tensors.items():
                yield kind, name, tensor

    def _collector(self, name: str) -> Callable[[torch.Tensor], None]:
        def collect(parameter: torch.Tensor) -> None:
            if parameter.grad is not None:
                self._sums[name] += parameter.grad
                parameter.grad = None

        return collect

    @torch.no_grad()
    def _update(self, name: str, parameter: torch.nn.Parameter, scale: float, learning_rate: float) -> None:
        """Adam (arXiv:1412.6980) with bias correction; no weight decay, as is usual in fine-tuning."""
        gradient = self._sums[name] * scale
        first, second = self._first[name], self._second[name]
        first.lerp_(gradient, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        size = learning_rate / (1 - BETAS[0] ** self.steps)
        denominator = second.sqrt().div_(math.sqrt(1 - BETAS[1] ** self.steps)).add_(EPSILON)
        self._masters[name].addcdiv_(first, denominator, value=-size)
        parameter.copy_(self._masters[name])


def _restore(tensor: torch.Tensor, state: Mapping[str, torch.Tensor], kind: str, name: str) -> None:
    """A tensor as ``state`` holds it; gradients that it leaves out are 0."""
    key = f"{kind}.{name}"
    if kind == "gradient" and key not in state:
        tensor.zero_()
    else:
        tensor.copy_(state[key])


def _views(tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Zeros like these tensors in one piece of memory, and the parts of it by name."""
    first = next(iter(tensors.values()))
    flat = torch.zeros(sum(tensor.numel() for tensor in tensors.values()), device=first.device)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors.values()])
    return flat, {name: part.view_as(tensors[name]) for name, part in zip(tensors, parts, strict=True)}


def learning_rate(step: int, total_steps: int, peak: float) -> float:
    """Rate of a step counted from 0: linear warm-up over 3 % of the steps, then half a cosine down to zero."""
    warmup = max(1, round(total_steps * WARMUP_SHARE))
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, total_steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * done))
