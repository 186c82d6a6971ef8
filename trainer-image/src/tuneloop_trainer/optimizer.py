"""AdamW over float32 copies of what is trained, gradients summed in float32, and a cosine schedule with warm-up.

A bfloat16 weight cannot hold the small updates of fine-tuning, and a bfloat16 sum loses the small gradients; both are
therefore kept in float32 here; weights that are float32 are their own copies. State is plain tensors by name, so that
a checkpoint is a safetensors file and resuming is exact.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch.distributed.tensor import DTensor

from tuneloop_trainer.peers import ALONE, Peers
from tuneloop_trainer.sharding import Part, local, rows

BETAS = (0.9, 0.999)
EPSILON = 1e-8
MAX_NORM = 1.0
WARMUP_SHARE = 0.03


class MasterAdam:
    """Optimises named parameters; call ``step`` after the microbatches of a step went backward.

    With ``peers`` each rank sums the gradients of its own packs, and ``gather`` makes them the step's. Where the
    parameters are split (sharding.py) FSDP has done that, and all that is kept here is of this rank's rows only.
    """

    def __init__(self, parameters: dict[str, torch.nn.Parameter], peers: Peers = ALONE) -> None:
        self._peers = peers
        self._shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self._split = any(isinstance(parameter, DTensor) for parameter in parameters.values())
        self._held = {name: local(parameter) for name, parameter in parameters.items()}
        self._masters = {name: held.float() for name, held in self._held.items()}  # float32: the same memory
        self._flat, self._sums = _views(self._masters)
        self._first = {name: torch.zeros_like(master) for name, master in self._masters.items()}
        self._second = {name: torch.zeros_like(master) for name, master in self._masters.items()}
        self.steps = 0
        for name, parameter in parameters.items():
            parameter.register_post_accumulate_grad_hook(self._collector(name))  # type: ignore[no-untyped-call]

    def gather(self) -> None:
        """Add up what all ranks have summed: one message of all gradients, in float32, a step."""
        if not self._split:
            self._peers.sum_(self._flat)

    def align(self) -> None:
        """Begin with the leader's weights, whatever each rank was dealt; parts of split ones are of the leader's."""
        for name, held in self._held.items():
            if not self._split:
                self._peers.spread_(self._masters[name])
            held.copy_(self._masters[name])

    def step(self, learning_rate: float) -> float:
        """One update; returns the gradient's norm before clipping (not finite if a gradient is not)."""
        norm = self._norm()
        if not math.isfinite(norm):
            return norm
        self.steps += 1
        scale = min(1.0, MAX_NORM / (norm + 1e-6))
        for name in self._held:
            self._update(name, scale, learning_rate)
        self.clear()
        return norm

    def _norm(self) -> float:
        """Of all gradients, whoever holds them."""
        norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(s) for s in self._sums.values()])))
        return math.sqrt(self._peers.total([norm**2])[0]) if self._split else norm

    def clear(self) -> None:
        """Forget the gradients of an unfinished step."""
        self._flat.zero_()

    def state(self) -> dict[str, torch.Tensor | Part]:
        """All tensors that resuming needs, by ``<kind>.<parameter>``; gradients only within a step: else they are 0.

        Split ones are parts, which all ranks must gather together (``write_tensors``, ``together``).
        """
        within = not self._split and bool(self._flat.any())
        return {
            f"{kind}.{name}": self.saved(name, tensor)
            for kind, name, tensor in self._tensors()
            if kind != "gradient" or within
        }

    def saved(self, name: str, tensor: torch.Tensor) -> torch.Tensor | Part:
        """A tensor of this parameter's, or this rank's rows of it, as checkpoints take it."""
        if not self._split:
            return tensor.contiguous()
        return Part(tensor, self._shapes[name], self._peers, self._flat.device)

    def weights(self) -> dict[str, torch.Tensor]:
        """What is trained as it is now, in float32, by parameter; of split parameters this rank's rows."""
        return dict(self._masters)

    @torch.no_grad()
    def load(self, state: Mapping[str, torch.Tensor], steps: int) -> None:
        """Restore what ``state`` gave on the leader, who tells the others; raises ``KeyError`` if one is missing."""
        for kind, name, tensor in self._tensors():
            if kind == "gradient" and f"{kind}.{name}" not in state:
                tensor.zero_()
            else:
                tensor.copy_(self.received(name, state, f"{kind}.{name}"))
        self.steps = steps
        self.put(self._masters)

    def received(self, name: str, state: Mapping[str, torch.Tensor], key: str) -> torch.Tensor:
        """The leader's tensor ``key`` of this parameter's, told to all: on the device, this rank's rows.

        The others' ``state`` has the same keys and no tensors.
        """
        whole = torch.empty(self._shapes[name], device=self._flat.device)
        if self._peers.leads:
            whole.copy_(state[key])
        self._peers.spread_(whole)
        return whole[rows(len(whole), self._peers)] if self._split else whole

    @torch.no_grad()
    def put(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Go on with these, as ``weights`` gave them."""
        for name, held in self._held.items():
            self._masters[name].copy_(weights[name])
            held.copy_(self._masters[name])

    def _tensors(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        kinds = {"weight": self._masters, "gradient": self._sums, "first": self._first, "second": self._second}
        for kind, tensors in kinds.items():
            for name, tensor in tensors.items():
                yield kind, name, tensor

    def _collector(self, name: str) -> Callable[[torch.Tensor], None]:
        def collect(parameter: torch.Tensor) -> None:
            if parameter.grad is not None:
                self._sums[name] += local(parameter.grad)
                parameter.grad = None

        return collect

    @torch.no_grad()
    def _update(self, name: str, scale: float, learning_rate: float) -> None:
        """Adam (arXiv:1412.6980) with bias correction; no weight decay, as is usual in fine-tuning."""
        gradient = self._sums[name] * scale
        first, second = self._first[name], self._second[name]
        first.lerp_(gradient, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        size = learning_rate / (1 - BETAS[0] ** self.steps)
        denominator = second.sqrt().div_(math.sqrt(1 - BETAS[1] ** self.steps)).add_(EPSILON)
        self._masters[name].addcdiv_(first, denominator, value=-size)
        self._held[name].copy_(self._masters[name])


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
