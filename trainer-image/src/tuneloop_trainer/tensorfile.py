"""Tensors in a safetensors file, written piece by piece and read one at a time, so that host memory need not hold all.

What a checkpoint holds lies on the accelerator, and all weights of a model with 8 billion parameters are 120 GiB of it.
safetensors' own writer takes every tensor from host memory at once; the file is the same. Never reads or writes code.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from tuneloop_trainer.sharding import Part

PIECE_BYTES = 64 * 2**20
"""In host memory at a time."""
FORMATS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
ALIGNMENT = 8  # of the first tensor's bytes


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor | Part]) -> None:
    """Write contiguous tensors of any device; raises ``KeyError`` for a number format that nothing here trains in.

    Those that are split over processes are gathered one at a time: the others call ``together`` meanwhile.
    """
    header = _header(tensors)
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for tensor in tensors.values():
            for piece in _pieces(_whole(tensor)):
                stream.write(piece.cpu().numpy().data)


class StoredTensors(Mapping[str, torch.Tensor]):
    """The tensors of a file by name, each read when it is asked for; they are views of the file, so copy to keep."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="pt")
        self._names = dict.fromkeys(self._file.keys())  # type: ignore[no-untyped-call]

    def __getitem__(self, name: str) -> torch.Tensor:
        """Read one; raises ``KeyError``."""
        if name not in self._names:
            raise KeyError(name)
        tensor: torch.Tensor = self._file.get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor

    def __contains__(self, name: object) -> bool:
        """Whether it is there, without reading it."""
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        """Names."""
        return iter(self._names)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._names)


def _header(tensors: Mapping[str, torch.Tensor | Part]) -> bytes:
    """Where each tensor's bytes lie behind it, as JSON, with spaces up to the alignment."""
    entries, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": FORMATS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    return text + b" " * (-len(text) % ALIGNMENT)


def _whole(tensor: torch.Tensor | Part) -> torch.Tensor:
    found = tensor.whole() if isinstance(tensor, Part) else tensor
    assert found is not None, "only the leader writes"
    return found


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A tensor's bytes in order, on its device."""
    numbers = tensor.detach().view(-1).view(torch.uint8)
    yield from torch.split(numbers, PIECE_BYTES)
