"""What the kernel lets this pod use: CPUs and memory by its cgroup.

Libraries ask the host, which a pod shares; the kernel's limits are what counts. Never imports torch.
"""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


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
