"""What this pod may use: CPUs and memory, read from its cgroup.

The host's numbers are wrong in a pod: threads beyond the quota are throttled, and memory beyond the limit is killed.
Reads both cgroup generations; never sets anything. All paths hang below one root, so tests give it a folder.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# cgroup v1 writes "no limit" as a page-aligned number close to 2**63.
_V1_UNLIMITED = 1 << 60


@dataclass(frozen=True)
class Limits:
    """CPUs as the quota gives them (2.5 is two and a half cores) and memory in bytes."""

    cpus: float
    memory_bytes: int

    @property
    def threads(self) -> int:
        """OpenMP threads: whole CPUs, a started one counts; at least one."""
        return max(1, math.ceil(self.cpus))


def read_limits(root: Path = Path("/")) -> Limits:
    """The tightest of quota, CPU set and machine. Raises OSError where /proc itself is unreadable."""
    machine_cpus = float(len(os.sched_getaffinity(0)))
    return Limits(
        cpus=min([machine_cpus, *_cpu_quotas(root)]),
        memory_bytes=min([_machine_memory(root), *_memory_limits(root)]),
    )


def _cpu_quotas(root: Path) -> Iterator[float]:
    for folder in _cgroup_folders(root, "cpu"):
        if (words := _read(folder / "cpu.max").split()) and words[0] != "max":
            yield int(words[0]) / int(words[1])
        quota = _number(folder / "cpu.cfs_quota_us")
        period = _number(folder / "cpu.cfs_period_us")
        if quota and period and quota > 0:
            yield quota / period


def _memory_limits(root: Path) -> Iterator[int]:
    for folder in _cgroup_folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _number(folder / name)
            if limit and limit < _V1_UNLIMITED:
                yield limit


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Our own cgroup and all above it, in both generations; a limit anywhere up the tree binds us."""
    mount = root / "sys/fs/cgroup"
    own = _own_groups(root)
    for base, group in ((mount, own.get("", "/")), (mount / controller, own.get(controller, "/"))):
        parts = [part for part in group.split("/") if part and part != ".."]
        for depth in range(len(parts) + 1):
            yield base.joinpath(*parts[:depth])


def _own_groups(root: Path) -> dict[str, str]:
    """Controller to group path, from /proc/self/cgroup; the unified hierarchy has the empty name."""
    groups: dict[str, str] = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), path))
    return groups


def _machine_memory(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no MemTotal in {root / 'proc/meminfo'}")


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
