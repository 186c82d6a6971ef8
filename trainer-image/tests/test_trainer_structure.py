"""What processes that split a model must agree on before they do."""

import pytest
import torch

from tuneloop_trainer.structure import difference, structure, tie

TIED = {"a": ("a", [3, 2]), "b": ("a", [3, 2])}
APART = {"a": ("a", [3, 2]), "b": ("b", [3, 2])}


class Two(torch.nn.Module):
    """An embedding and a head, tied or not, and a buffer."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.inner = torch.nn.Embedding(3, 2, device="meta")
        self.head = torch.nn.Linear(2, 3, bias=False, device="meta")
        if tied:
            self.head.weight = self.inner.weight
        self.register_buffer("scale", torch.empty(1, device="meta"))


@pytest.mark.parametrize("leader", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_what_the_leader_ties_is_tied(leader: bool, own: bool) -> None:
    told, model = structure(Two(tied=leader)), Two(tied=own)
    assert difference(told, structure(model)) == 0
    tie(model, told)
    assert structure(model) == told
    assert (model.head.weight is model.inner.weight) is leader
    assert isinstance(model.head.weight, torch.nn.Parameter)


@pytest.mark.parametrize(
    ("told", "own", "place"),
    [
        (TIED, TIED, 0),
        (TIED, APART, 0),
        (APART, TIED, 0),
        (APART, {"a": ("a", [3, 2])}, 2),
        (APART, {**APART, "a": ("a", [4, 2])}, 1),
        (APART, {**APART, "c": ("c", [1])}, 3),
    ],
)
def test_which_tensor_differs(
    told: dict[str, tuple[str, list[int]]], own: dict[str, tuple[str, list[int]]], place: int
) -> None:
    assert difference(told, own) == place
