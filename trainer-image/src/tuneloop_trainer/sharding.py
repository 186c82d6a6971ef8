"""A model whose weights are split over all processes of a job, by FSDP2 (torch.distributed.fsdp.fully_shard).

Each process holds its rows of every weight; a layer is gathered as it is computed, forward and backward, and let go.
What is not in a layer (embedding, last norm, head) is gathered for as long as ``Root`` runs something. An adapter is
whole everywhere. All processes must compute the same passes in the same order, or none goes on. Never reads a file.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer
from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.machine import Machine
from tuneloop_trainer.peers import Peers

log = logging.getLogger("tuneloop")

Table = dict[str, torch.Tensor | None]


class Root(torch.nn.Module):
    """What FSDP sees as the whole model: it runs what computes with it, of which a loss is only a part.

    The loss needs hidden states and the head's weight, generation a hundred passes: neither is one forward of the
    model. FSDP gathers what is in no layer before a forward and lets go of it afterwards, and again for backward.
    """

    def __init__(self, causal: Any, peers: Peers, widened: torch.dtype | None = None) -> None:
        super().__init__()
        self.causal, self.peers, self._widened = causal, peers, widened

    def held_dtype(self, computed: torch.dtype) -> torch.dtype:
        """How weights lie here that are computed with in this format: where all are trained they are masters."""
        return self._widened or computed

    def forward(self, compute: Callable[[], Any]) -> Any:
        """The result of ``compute``."""
        return compute()


def rows(size: int, peers: Peers) -> slice:
    """Which of a tensor's first dimension this process holds: as ``torch.chunk``, the last ones fewer or none."""
    each = -(-size // peers.world)
    return slice(min(size, peers.rank * each), min(size, (peers.rank + 1) * each))


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's rows of a split tensor, in the same memory; of another, all."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def part_of(tensor: torch.Tensor, peers: Peers) -> "torch.Tensor | Part":
    """A split tensor as ``Part``; another as it is."""
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    return Part(local(tensor), tensor.shape, peers, tensor.device)


@dataclass(frozen=True)
class Part:
    """This process's rows of a float tensor of ``shape`` that is split over all."""

    rows: torch.Tensor
    shape: torch.Size
    peers: Peers
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format."""
        return self.rows.dtype

    @property
    def nbytes(self) -> int:
        """Of the whole."""
        return self.shape.numel() * self.rows.dtype.itemsize

    def whole(self) -> torch.Tensor | None:
        """All rows, on the leader's device; None for the others, who must ask at the same time."""
        each = -(-self.shape[0] // self.peers.world)
        sent = self.rows.new_zeros((each, *self.shape[1:]), device=self.device)
        sent[: len(self.rows)] = self.rows
        if not self.peers.leads:
            dist.gather(sent, dst=0)
            return None
        gathered = sent.new_empty((each * self.peers.world, *self.shape[1:]))
        dist.gather(sent, list(torch.split(gathered, each)), dst=0)
        return gathered[: self.shape[0]]


def together(tensors: Iterable[torch.Tensor | Part]) -> None:
    """Take part in gathering what the leader gathers of these."""
    for tensor in tensors:
        if isinstance(tensor, Part):
            tensor.whole()


def split(module: torch.nn.Module, causal: torch.nn.Module, machine: Machine, peers: Peers) -> Root:
    """Split a model that only the leader has (the others' is on the meta device); ``module`` may hold an adapter.

    The leader's weights go out a layer at a time, so that no process ever has more of them on its device. A base that
    is trained is kept in float32 and gathered in the machine's format: the float32 copies of the optimizer are then
    the weights themselves.
    """
    layers = layers_of(causal)
    _refuse_shared(layers)
    adapted = module is not causal
    policy = MixedPrecisionPolicy() if adapted else _trained_policy(machine)
    widened = None if adapted else torch.float32
    deal = _Deal(peers, machine.device, widened)
    mesh = init_device_mesh(machine.device.type, (peers.world,))
    root = Root(causal, peers, widened)
    for part in (*layers, root):
        deal.out(part)
        whole = {each for each in part.parameters() if adapted and each.requires_grad}
        shown = fully_shard(part, mesh=mesh, reshard_after_forward=True, mp_policy=policy, ignored_params=whole)
        shown.set_gradient_divide_factor(1.0)  # packs' losses are over the step's tokens already: the sum is the mean
        shown.set_force_sum_reduction_for_comms(True)
        shown.set_reduce_scatter_unused_params(not adapted)  # an expert that no token of this process passed
    root(lambda: None)  # the first forward settles the memory of the parts
    held, every = held_bytes(causal)
    log.info("this process holds %d of the model's %d bytes, in %d layers", held, every, len(layers))
    return root


def held_bytes(model: torch.nn.Module) -> tuple[int, int]:
    """What this process holds of a model's parameters, and what they are in all."""
    parameters = list(model.parameters())
    return sum(local(each).untyped_storage().nbytes() for each in parameters), sum(each.nbytes for each in parameters)


def _trained_policy(machine: Machine) -> MixedPrecisionPolicy:
    """Computed in the machine's format, gradients added up in float32."""
    return MixedPrecisionPolicy(machine.dtype, torch.float32, cast_forward_inputs=False)


@torch.no_grad()
def merge(module: Any, root: Root) -> Any:
    """The transformers model with PEFT's adapter in its split weights, a layer at a time, by PEFT's own merge."""
    for part in (*layers_of(root.causal), root):
        part.unshard()  # type: ignore[operator]
        every = [_Adapted(each) for each in part.modules() if isinstance(each, BaseTunerLayer)]
        own = [each for each in every if not isinstance(each.weight, DTensor)]  # not of a layer within this part
        merged = [each.merged() for each in own]
        part.reshard()  # type: ignore[operator]
        for each, weight in zip(own, merged, strict=True):
            local(each.weight).copy_(weight[rows(len(weight), root.peers)])
    return module.unload()


class _Adapted:
    """A layer of PEFT's and the weight that it adapts; of routed experts, which are one tensor, by its name."""

    def __init__(self, layer: Any) -> None:
        self._layer, self._base = layer, layer.get_base_layer()
        self._name = getattr(layer, "parameter_name", "weight")

    @property
    def weight(self) -> torch.Tensor:
        """As it is now: a process's rows, or gathered."""
        found: torch.Tensor = getattr(self._base, self._name)
        return found

    def merged(self) -> torch.Tensor:
        """With the adapter, in a copy: what FSDP gathered lies in memory that is FSDP's."""
        gathered = self.weight
        setattr(self._base, self._name, torch.nn.Parameter(gathered.detach().clone(), requires_grad=False))
        self._layer.merge()
        found = self.weight.detach()
        setattr(self._base, self._name, gathered)
        return found


@torch.no_grad()
def whole_state(root: Root, dtype: Callable[[torch.Tensor], torch.dtype]) -> dict[str, torch.Tensor]:
    """On the leader, a model's state in host memory, each parameter in its format; gathered one at a time by all."""
    found: dict[str, torch.Tensor] = {}
    known: dict[int, torch.Tensor] = {}  # tied ones stay tied
    for name, parameter in root.causal.named_parameters(remove_duplicate=False):
        if id(parameter) not in known:
            part = part_of(parameter, root.peers)
            whole = part.whole() if isinstance(part, Part) else part
            known[id(parameter)] = torch.empty(0) if whole is None else whole.to("cpu", dtype(parameter))
        found[name] = known[id(parameter)]
    kept = root.causal.state_dict().keys()
    return found | {name: buffer.cpu() for name, buffer in root.causal.named_buffers() if name in kept}


def layers_of(causal: torch.nn.Module) -> list[torch.nn.Module]:
    """The decoder's layers, in order; raises ``ModelUnsupported`` where transformers does not mark any."""
    found = [module for module in causal.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not found:
        message = f"{type(causal).__name__} has no layers that a model can be split by; it must fit one accelerator."
        raise StageError(Reason.MODEL_UNSUPPORTED, message)
    return found


def _refuse_shared(layers: list[torch.nn.Module]) -> None:
    """A weight of two layers would become two."""
    seen: set[int] = set()
    for layer in layers:
        own = {id(parameter) for parameter in layer.parameters()}
        if own & seen:
            message = "layers of this model share weights, and such a model is not split: it must fit one accelerator."
            raise StageError(Reason.MODEL_UNSUPPORTED, message)
        seen |= own


class _Deal:
    """Gives every process the leader's tensors of one part of the model after the other."""

    def __init__(self, peers: Peers, device: torch.device, widened: torch.dtype | None) -> None:
        self._peers, self._device, self._widened = peers, device, widened
        self._done: set[int] = set()  # of tensors that are in the model, so that no number is used twice

    def out(self, part: torch.nn.Module) -> None:
        """Put real tensors in place of all of a part's that are not dealt yet; tied ones stay tied."""
        places = list(self._places(part))
        sent = {id(tensor): tensor for _, _, tensor in places}
        formats = self._peers.tell([str(tensor.dtype).removeprefix("torch.") for tensor in sent.values()])
        dealt = {
            key: self._received(tensor, getattr(torch, kind))
            for (key, tensor), kind in zip(sent.items(), formats, strict=True)
        }
        for table, name, tensor in places:
            table[name] = dealt[id(tensor)]
        self._done |= {id(tensor) for tensor in dealt.values()}

    def _places(self, part: torch.nn.Module) -> Iterator[tuple[Table, str, torch.Tensor]]:
        for module in part.modules():
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is not None and not isinstance(tensor, DTensor) and id(tensor) not in self._done:
                        yield table, name, tensor  # type: ignore[misc]

    def _received(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if self._peers.leads:
            held = tensor.detach().to(self._device, copy=True).contiguous()
        else:
            held = torch.empty(tensor.shape, dtype=dtype, device=self._device)
        self._peers.spread_(held)
        if not isinstance(tensor, torch.nn.Parameter):
            return held
        if self._widened is not None and held.is_floating_point():
            held = held.to(self._widened)
        return torch.nn.Parameter(held, requires_grad=tensor.requires_grad)
