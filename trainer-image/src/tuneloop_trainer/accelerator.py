"""Whether the accelerator that a job asked for can be used, and why not: a GPU must not be held for work on CPU.

What a person must mend (driver, node, image, another kind of accelerator) ends the job at once; what may be better at
the next try (a device that does not answer) counts as one. Never computes anything.
"""

from collections.abc import Sequence

import torch
from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError

LASTING = ("driver on your system is too old", "no nvidia driver", "not compiled with cuda", "no cuda gpus")
"""What torch says of a node or an image that will be the same at the next try."""
CUDA_ONLY = "The images of this release compute on NVIDIA accelerators (CUDA) only."


def require_accelerator(accelerators: int, which: int) -> None:
    """Raise ``AcceleratorMissing`` or ``AcceleratorFailed`` unless device ``which`` of ``accelerators`` can be used."""
    said = _torch_says()
    if said:
        raise unusable(accelerators, said)
    seen = torch.cuda.device_count()
    if which >= seen:
        raise too_few(accelerators, seen)
    name, capability = torch.cuda.get_device_name(which), torch.cuda.get_device_capability(which)
    if not has_kernels(capability, torch.cuda.get_arch_list()):
        raise no_kernels(name, capability)


def has_kernels(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Whether torch, built for these (``sm_80``, ``compute_90``), runs on a device of this compute capability.

    Machine code runs on the same major version from its own minor on, PTX on every later one. An empty list tells
    nothing.
    """
    device = 10 * capability[0] + capability[1]
    for name in architectures:
        kind, _, digits = name.partition("_")
        built = int("".join(filter(str.isdigit, digits)) or 0)
        if built <= device and (kind == "compute" or built // 10 == capability[0]):
            return True
    return not architectures


def unusable(accelerators: int, said: str) -> StageError:
    """The error where torch finds no CUDA device at all; ``said`` is how torch puts it."""
    lasts = any(words in said.lower() for words in LASTING)
    next_step = (
        "Update the node's driver, keep the job off that node (pod.nodeSelector), or train on CPU "
        "(resources.accelerators: 0) in a new job."
        if lasts
        else "Look at the node's device (nvidia-smi, dmesg); another try may get another one."
    )
    return StageError(
        Reason.ACCELERATOR_MISSING if lasts else Reason.ACCELERATOR_FAILED,
        f"resources.accelerators is {accelerators}, and torch {torch.__version__} finds no CUDA device in this pod: "
        f"{said}. It needs an NVIDIA driver for CUDA {torch.version.cuda} on the node, and the device plugin's devices "
        f"in the pod. {CUDA_ONLY} {next_step}",
    )


def too_few(accelerators: int, seen: int) -> StageError:
    """The error where the pod has fewer devices than the job asked for."""
    return StageError(
        Reason.ACCELERATOR_MISSING,
        f"resources.accelerators is {accelerators}, and the pod sees {seen} CUDA devices. A device for each is needed: "
        "look whether resources.acceleratorResource gives whole devices, or ask for fewer in a new job.",
    )


def no_kernels(name: str, capability: tuple[int, int]) -> StageError:
    """The error where the device is older, or newer, than what torch was built for."""
    return StageError(
        Reason.ACCELERATOR_MISSING,
        f"{name} has compute capability {capability[0]}.{capability[1]}, and torch {torch.__version__} of the trainer "
        f"image is built for {' '.join(torch.cuda.get_arch_list())}: none runs on it. Choose another accelerator by "
        "pod.nodeSelector nvidia.com/gpu.product in a new job, or set images.trainer to an image whose torch has it.",
    )


def _torch_says() -> str:
    """Why CUDA cannot be used, in torch's words, or nothing. What it recommends about its own downloads is cut off."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError) as error:
        return str(error).partition(" Please ")[0].strip().rstrip(".")[:200] or type(error).__name__
    return ""
