"""CPU quota and memory limit from both cgroup generations."""

import os
from pathlib import Path

import pytest

from tuneloop_server.limits import Limits, read_limits

GIB = 1 << 30


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/meminfo").write_text(f"MemTotal:       {64 * GIB // 1024} kB\nMemFree: 1 kB\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V1 = "4:memory:/kubepods/pod1\n3:cpu,cpuacct:/kubepods/pod1\n0::/\n"
V2 = "0::/kubepods.slice/pod1\n"


@pytest.mark.parametrize(
    ("groups", "files", "cpus", "memory"),
    [
        pytest.param(
            "0::/\n", {"cpu.max": "150000 100000\n", "memory.max": f"{4 * GIB}\n"}, 1.5, 4 * GIB, id="v2, own root"
        ),
        pytest.param("0::/\n", {"cpu.max": "max 100000\n", "memory.max": "max\n"}, 8, 64 * GIB, id="v2, no limit"),
        pytest.param(
            V2,
            {
                "kubepods.slice/cpu.max": "50000 100000\n",
                "kubepods.slice/pod1/memory.max": f"{2 * GIB}\n",
                "memory.max": "max\n",
            },
            0.5,
            2 * GIB,
            id="v2, a parent binds",
        ),
        pytest.param(
            V1,
            {
                "cpu/cpu.cfs_quota_us": "200000\n",
                "cpu/cpu.cfs_period_us": "100000\n",
                "memory/memory.limit_in_bytes": f"{3 * GIB}\n",
            },
            2,
            3 * GIB,
            id="v1, mounted at the root as containerd does",
        ),
        pytest.param(
            V1,
            {
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
                "memory/kubepods/pod1/memory.limit_in_bytes": f"{GIB}\n",
            },
            8,
            GIB,
            id="v1, unlimited above, limited below",
        ),
        pytest.param("", {}, 8, 64 * GIB, id="no cgroups at all"),
    ],
)
def test_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, files: dict[str, str], cpus: float, memory: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert read_limits(machine(tmp_path, groups, files)) == Limits(cpus, memory)


@pytest.mark.parametrize(("cpus", "threads"), [(0.1, 1), (1, 1), (1.5, 2), (8, 8)])
def test_threads(cpus: float, threads: int) -> None:
    assert Limits(cpus, GIB).threads == threads


def test_the_real_machine_has_limits() -> None:
    found = read_limits()
    assert 0 < found.cpus <= (os.cpu_count() or 1)
    assert found.memory_bytes > 0
