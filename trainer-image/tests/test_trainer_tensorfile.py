"""Checkpoint files: safetensors' own format, written with little in host memory, whatever lies on the accelerator."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from tuneloop_trainer import tensorfile
from tuneloop_trainer.tensorfile import StoredTensors, write_tensors

TENSORS = {
    "weight.a": torch.arange(6.0).view(2, 3),
    "first.empty": torch.zeros(0, 4),
    "second.scalar": torch.tensor(7.0),
    "weight.half": torch.tensor([1.5, -2.0, 3.0], dtype=torch.bfloat16),
}


@pytest.mark.parametrize("piece", [5, 2**20])
def test_safetensors_reads_what_is_written_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(tensorfile, "PIECE_BYTES", piece)
    write_tensors(tmp_path / "ours", TENSORS)
    assert_equal(load_file(tmp_path / "ours"), TENSORS)
    write_tensors(tmp_path / "none", {})
    assert load_file(tmp_path / "none") == {}


def test_checkpoints_that_safetensors_wrote_are_read(tmp_path: Path) -> None:
    """Those of releases before this one."""
    save_file(TENSORS, tmp_path / "theirs")
    stored = StoredTensors(tmp_path / "theirs")
    assert_equal(dict(stored), TENSORS)
    assert ("weight.a" in stored, "weight.b" in stored, len(stored)) == (True, False, 4)
    with pytest.raises(KeyError):
        stored["weight.b"]


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)


class FromDevice(TorchDispatchMode):
    """Plays copies from a device of another memory, for which ``meta`` stands, and counts what lives of them here."""

    def __init__(self) -> None:
        super().__init__()
        self.living = self.most = self.copied = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten._to_copy.default or args[0].device.type != "meta":
            return func(*args, **(kwargs or {}))
        copy = torch.zeros(args[0].shape, dtype=args[0].dtype)
        self.copied += copy.nbytes
        self.living += copy.nbytes
        self.most = max(self.most, self.living)
        weakref.finalize(copy, self._gone, copy.nbytes)
        return copy

    def _gone(self, size: int) -> None:
        self.living -= size


def test_host_memory_holds_a_few_pieces_and_never_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorfile, "PIECE_BYTES", 4096)
    state = {f"{kind}.{layer}": torch.empty(64, 100, device="meta") for kind in "abc" for layer in range(8)}
    whole = sum(tensor.nbytes for tensor in state.values())
    with FromDevice() as device:
        write_tensors(tmp_path / "large", state)
    assert device.copied == whole > 600_000
    assert device.most <= 2 * 4096
    assert {tensor.shape for tensor in load_file(tmp_path / "large").values()} == {(64, 100)}
