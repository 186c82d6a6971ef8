"""What the e2e tier does to the node that no user would: end a container from outside, as the kernel does; lose it."""

import os
import signal
from pathlib import Path
from typing import Any

from tuneloop_localcluster import cluster, components, controlplane
from tuneloop_localcluster.paths import cache
from tuneloop_localcluster.progress import Progress

CGROUPS = Path("/sys/fs/cgroup")


def container_pids(pod: dict[str, Any]) -> list[int]:
    """Process ids, in the host's numbering, of all containers of a pod; found by their cgroup's name."""
    statuses = pod["status"].get("containerStatuses") or []
    ids = [s["containerID"].rpartition("/")[2] for s in statuses if s.get("containerID")]
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and any(i in _cgroup(folder) for i in ids):
            found.append(int(folder.name))
    return sorted(found)


def kill_container(pod: dict[str, Any]) -> list[int]:
    """``kill -9`` every process of the pod's containers, which this tier's cluster started; returns their ids."""
    pids = container_pids(pod)
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return pids


def slow_down(pod: dict[str, Any], share: float) -> int:
    """Let the pod's containers have at most this share of one processor; returns how many cgroups were told.

    A test that must catch training in the act waits for nothing else: a fast machine trains the tiny model in seconds.
    """
    period = 100_000  # microseconds, the kernel's default
    quota = int(period * share)
    groups = {group for pid in container_pids(pod) for group in [_cpu_group(Path(f"/proc/{pid}"))] if group}
    for group in groups:
        if (first := group / "cpu.cfs_quota_us").exists():
            first.write_text(str(quota))
        else:
            (group / "cpu.max").write_text(f"{quota} {period}")
    return len(groups)


def _cpu_group(folder: Path) -> Path | None:
    """The folder of a process's cpu controller, in the first version of cgroups or in the second."""
    rows = [row.split(":", 2) for row in _cgroup(folder).splitlines()]
    by_controllers = {controllers: path.lstrip("/") for _, controllers, path in rows}
    for controllers, path in by_controllers.items():
        if "cpu" in controllers.split(","):
            return CGROUPS / controllers / path
    return CGROUPS / by_controllers[""] if "" in by_controllers else None


def _cgroup(folder: Path) -> str:
    try:
        return (folder / "cgroup").read_text()
    except OSError:
        return ""


def stop_kubelet() -> None:
    """End the node's agent; its containers live on, as on a node that the network has lost."""
    controlplane.daemon(components.control_plane(cache()), "kubelet").stop()


def start_kubelet() -> None:
    """Start what is missing of the cluster, and wait until the node is Ready again."""
    cluster.up(cache(), Progress())
