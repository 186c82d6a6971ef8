"""What this pod may use: threads and memory by its cgroup, a device, a number format, an allocator that keeps memory.

Libraries ask the host, which a pod shares; the kernel's limits are what counts. Never starts a computation.
"""

import ctypes
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")
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


def prepare_machine(accelerators: int) -> Machine:
    """Set up threads and memory; CUDA where the job asked for an accelerator and there is one."""
    threads = cpu_threads()
    torch.set_num_threads(threads)
    if accelerators > 0 and torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        return Machine(torch.device("cuda"), torch.bfloat16, threads)
    keep_memory()
    return Machine(torch.device("cpu"), cpu_dtype(), threads)


def cpu_dtype() -> torch.dtype:
    """bfloat16 where the CPU multiplies it in hardware; elsewhere float32, which is then several times faster."""
    capable = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if capable else torch.float32


def cpu_threads(cgroup: Path = CGROUP) -> int:
    """CPUs of this process by its affinity and its cgroup's quota (v2 and v1), at least one; OMP_NUM_THREADS wins."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted):
        return int(wanted)
    available = len(os.sched_getaffinity(0))
    quota = _quota_v2(cgroup) or _quota_v1(cgroup)
    return max(1, min(available, math.ceil(quota))) if quota else available


def memory_limit(cgroup: Path = CGROUP) -> int:
    """Bytes that the cgroup allows (v2 and v1); 0 where there is no limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = _read(cgroup / name)
        if text.isdigit() and int(text) < 2**60:
            return int(text)
    return 0


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
    """Most bytes used so far: of the accelerator, or of the process on CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource  # noqa: PLC0415 - not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _quota_v2(cgroup: Path) -> float:
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period else 0.0


def _quota_v1(cgroup: Path) -> float:
    for name in ("cpu", "cpu,cpuacct", "cpuacct,cpu"):
        quota = _read(cgroup / name / "cpu.cfs_quota_us")
        period = _read(cgroup / name / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            return int(quota) / int(period)
    return 0.0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
