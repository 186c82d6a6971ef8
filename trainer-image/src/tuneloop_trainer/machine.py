"""What this pod may use: threads and memory by its cgroup, a device, a number format, an allocator that keeps memory.

Libraries ask the host, which a pod shares; the kernel's limits are what counts. Never starts a computation.
"""

import ctypes
from dataclasses import dataclass

import torch

from tuneloop_trainer.accelerator import require_accelerator
from tuneloop_trainer.cgroup import cpu_threads

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
KEPT_BYTES = 2**31 - 1
HEAP_STEP_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Machine:
    """Device and format of the computation."""

    device: torch.device
    dtype: torch.dtype
    threads: int

    @property
    def words(self) -> str:
        """For the log."""
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else f"CPU, {self.threads} threads"
        return f"{name}, {str(self.dtype).removeprefix('torch.')}"


def prepare_machine(accelerators: int, which: int = 0, *, simulated: bool = False) -> Machine:
    """Set up threads and memory; CUDA where the job asked for accelerators: ``which`` of them.

    Raises ``AcceleratorMissing`` or ``AcceleratorFailed`` where that cannot be used. ``simulated`` accelerators are
    only a number in a node's status: without a device the CPU computes.
    """
    threads = cpu_threads()
    torch.set_num_threads(threads)
    if accelerators > 0 and not (simulated and not torch.cuda.is_available()):
        require_accelerator(accelerators, which)
        torch.cuda.set_device(which)
        torch.backends.cuda.matmul.allow_tf32 = True
        return Machine(torch.device("cuda"), cuda_dtype(), threads)
    keep_memory()
    return Machine(torch.device("cpu"), cpu_dtype(), threads)


def cuda_dtype() -> torch.dtype:
    """bfloat16 where the accelerator has units for it; elsewhere float32, since bfloat16 would be emulated there."""
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32


def cpu_dtype() -> torch.dtype:
    """bfloat16 where the CPU multiplies it in hardware; elsewhere float32, which is then several times faster."""
    capable = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if capable else torch.float32


def keep_memory() -> bool:
    """Have glibc keep freed memory instead of giving it back to the kernel after every tensor.

    By default each large tensor is mapped and unmapped, and its pages are zeroed and faulted in again: on CPU that is
    a fifth of the training time. Returns False where the C library is another one.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, KEPT_BYTES), (M_TOP_PAD, HEAP_STEP_BYTES))
    return all(mallopt(name, value) for name, value in settings)


def peak_memory(device: torch.device) -> int:
    """Most bytes used so far: of the accelerator, or of the process on CPU.

    Of an accelerator, what the plan counts and its memory must hold: all that torch's allocator ever reserved, blocks
    that it keeps unused too, and what lies outside of it.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device)) + outside_allocator(device)
    import resource  # noqa: PLC0415 - not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def outside_allocator(device: torch.device) -> int:
    """Bytes of a CUDA device that are in use, but not by torch's allocator: context, kernels, handles of libraries.

    Where several pods share a device, those of the others too.
    """
    free, total = torch.cuda.mem_get_info(device)
    return max(0, total - free - int(torch.cuda.memory_reserved(device)))
