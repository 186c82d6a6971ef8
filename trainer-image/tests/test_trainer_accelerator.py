"""Accelerators: named where they cannot be used, and which attention computes on which. This machine has none."""

import pods
import pytest
import torch
from tuneloop_core.stages import Reason, Stage

from tuneloop_trainer import attention
from tuneloop_trainer.accelerator import has_kernels, unusable
from tuneloop_trainer.attention import Layout, takes_one_kernel
from tuneloop_trainer.machine import prepare_machine

BUILT = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")  # torch 2.13 for CUDA 13.0


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without one, wherever this runs: CUDA itself hides what there is."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.usefixtures("no_device")
def test_a_job_for_an_accelerator_never_trains_on_cpu_in_silence(pod: pods.Pod) -> None:
    pod.check()
    code, termination = pod.run(Stage.TRAIN, {**pod.train_input(), "accelerators": 2})
    assert (code, termination.reason) == (42, Reason.ACCELERATOR_MISSING)
    assert "resources.accelerators is 2, and torch" in termination.message
    assert not (pod.paths.work / "train/base.json").exists(), "it ended before anything was computed"


@pytest.mark.usefixtures("no_device")
def test_simulated_accelerators_are_the_cpu() -> None:
    assert prepare_machine(1, simulated=True).device.type == "cpu"


@pytest.mark.parametrize(
    ("said", "reason", "code", "words"),
    [
        ("Found no NVIDIA driver on your system", Reason.ACCELERATOR_MISSING, 42, "Update the node's driver"),
        ("The NVIDIA driver on your system is too old (found version 11040)", Reason.ACCELERATOR_MISSING, 42, "11040"),
        ("Torch not compiled with CUDA enabled", Reason.ACCELERATOR_MISSING, 42, "NVIDIA accelerators (CUDA) only"),
        ("No CUDA GPUs are available", Reason.ACCELERATOR_MISSING, 42, "device plugin's devices in the pod"),
        ("CUDA driver initialization failed", Reason.ACCELERATOR_FAILED, 75, "another try may get another one"),
        ("CUDA unknown error - this may be due to", Reason.ACCELERATOR_FAILED, 75, "nvidia-smi"),
    ],
)  # fmt: skip
def test_what_lasts_ends_the_job_and_what_may_pass_is_tried_again(
    said: str, reason: Reason, code: int, words: str
) -> None:
    error = unusable(1, said)
    assert (error.reason, error.exit_code) == (reason, code)
    assert words in error.message
    assert len(error.message) < 750, "the operator cuts there"


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((7, 0), BUILT, False),  # V100
        ((7, 5), BUILT, True),  # T4
        ((8, 9), BUILT, True),  # L4: what is built for 8.6
        ((9, 0), BUILT, True),
        ((10, 3), BUILT, True),
        ((6, 1), BUILT, False),
        ((11, 0), BUILT, False),
        ((11, 0), (*BUILT, "compute_120"), False),
        ((12, 1), ("sm_90", "compute_90"), True),  # PTX is compiled for what came later
        ((9, 0), ("sm_90a",), True),
        ((7, 0), (), True),  # nothing is known
    ],
)
def test_devices_that_torch_was_built_for(
    capability: tuple[int, int], architectures: tuple[str, ...], runs: bool
) -> None:
    assert has_kernels(capability, architectures) is runs


@pytest.mark.parametrize(
    ("capability", "dtype", "head_size", "one"),
    [
        (None, torch.bfloat16, 64, False),  # CPU
        ((7, 5), torch.float32, 64, False),  # T4, in the format that it is given
        ((7, 5), torch.float16, 64, False),
        ((8, 0), torch.float32, 64, False),
        ((8, 0), torch.bfloat16, 128, True),
        ((8, 9), torch.float16, 256, True),
        ((9, 0), torch.bfloat16, 512, False),
        ((9, 0), torch.bfloat16, 100, False),
        ((12, 0), torch.bfloat16, 64, True),
    ],
)
def test_where_one_kernel_computes_a_whole_pack(
    capability: tuple[int, int] | None, dtype: torch.dtype, head_size: int, one: bool
) -> None:
    assert takes_one_kernel(capability, dtype, head_size) is one


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("layout", [Layout(0, (5, 2)), Layout(6, (4, 1))], ids=["apart", "a shared beginning"])
def test_piece_by_piece_all_lies_on_the_device(layout: Layout, window: int | None) -> None:
    """On the device that has no memory: what is mixed with a tensor of the CPU raises there, as on CUDA."""
    meta = torch.device("meta")
    given = attention.packing_arguments(layout, meta)
    query, key = torch.empty(1, 4, layout.tokens, 8, device=meta), torch.empty(1, 2, layout.tokens, 8, device=meta)
    output, _ = attention.packed_attention(torch.nn.Module(), query, key, key, None, sliding_window=window, **given)
    assert (output.device, output.shape) == (meta, (1, layout.tokens, 4, 8))
    assert given["position_ids"].device == meta
    masks = [mask for mask in given["pack"]._masks.values() if mask is not None]
    assert bool(masks) is bool(layout.shared or window), "a mask is needed"
    assert all(mask.device == meta for mask in masks)
