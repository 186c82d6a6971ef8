"""Weights that are no numbers are found from their bits, in every format that adapters come in."""

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from tuneloop_trainer.finite import not_finite


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_nan_and_infinity_are_found_and_the_largest_numbers_are_not(tmp_path: Path, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    tensors = {
        "small": torch.randn(7, 5).to(dtype),
        "largest": torch.tensor([limits.max, limits.min, limits.tiny, 0.0, -0.0], dtype=dtype),
        "infinite": torch.tensor([1.0, float("-inf")], dtype=dtype),
        "nan": torch.tensor([float("nan")], dtype=dtype),
        "empty": torch.zeros(0, 3, dtype=dtype),
        "integers": torch.tensor([-1, 2]),
    }
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    broken, count = not_finite(tmp_path / "a.safetensors")
    assert (sorted(broken), count) == (["infinite", "nan"], len(tensors))


def test_a_file_that_is_cut_is_no_file_of_weights(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SafetensorError):
        not_finite(path)
