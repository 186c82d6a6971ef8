"""The same tensors in every process, before the leader's are dealt out (sharding.py).

Only the leader reads a model's files, and they may say other than the configuration: transformers does not tie a head
to its embedding where both are in the files and differ. The others have no files to see that by, so they are told.
Never moves a number.
"""

from collections.abc import Mapping

import torch
from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.peers import Peers

Structure = Mapping[str, tuple[str, list[int]]]
"""Of each name the first name of its tensor (another one where it is tied), and the tensor's shape."""


def as_leader(model: torch.nn.Module, peers: Peers) -> None:
    """Tie what the leader's model ties and nothing else; raises ``ModelUnsupported`` where its tensors are others."""
    own = structure(model)
    told: Structure = peers.tell(own)
    place = int(peers.most([difference(told, own)])[0])  # all end for the same reason
    if place:
        name = [*told, "tensors that the files lack"][place - 1]
        message = (
            f"the model's files and its configuration differ in {name}, and such a model is not split: it must fit one "
            "accelerator, or its config.json must be that of its files."
        )
        raise StageError(Reason.MODEL_UNSUPPORTED, message)
    tie(model, told)


def structure(model: torch.nn.Module) -> dict[str, tuple[str, list[int]]]:
    """Of a model's parameters and buffers, in order."""
    first: dict[int, str] = {}
    return {name: (first.setdefault(id(held), name), list(held.shape)) for name, held in _named(model).items()}


def difference(told: Structure, own: Structure) -> int:
    """Which tensor of ``told``, counted from 1, ``own`` lacks or has in another shape; one more where it has more."""
    for number, (name, (_, shape)) in enumerate(told.items(), 1):
        if name not in own or list(own[name][1]) != list(shape):
            return number
    return len(told) + 1 if len(own) > len(told) else 0


def tie(model: torch.nn.Module, told: Structure) -> None:
    """Make the names that share a tensor those that share one in ``told``; one that is missing for that is new."""
    found: dict[str, torch.Tensor] = {}
    for name, held in _named(model).items():
        owner = told[name][0]
        if owner not in found:
            taken = any(held is each for each in found.values())
            found[owner] = torch.nn.Parameter(torch.empty_like(held)) if taken else held
        if found[owner] is not held:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, found[owner])


def _named(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return parameters | dict(model.named_buffers(remove_duplicate=False))
