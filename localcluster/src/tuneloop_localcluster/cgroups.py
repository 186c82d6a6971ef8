"""The cgroup that everything of the cluster runs below, so that all of it can be found again without names.

Under cgroup v1 there is one tree per controller; the daemons join only one of them, which is enough to be found.
Pods are placed in all of them by the kubelet and runc.
"""

import time
from collections.abc import Iterator
from pathlib import Path

from tuneloop_localcluster.errors import ClusterError
from tuneloop_localcluster.nodeconfig import CGROUP

_MOUNTINFO = Path("/proc/self/mountinfo")
_DAEMONS = "daemons"


def hierarchies(mountinfo: str) -> list[tuple[Path, str]]:
    """Mount point and super options (such as `rw,memory`) of each cgroup tree that holds controllers or names."""
    found = []
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            found.append((Path(fields.split()[4]), options))
    return found


def _roots() -> list[Path]:
    return [point / CGROUP for point, _ in hierarchies(_MOUNTINFO.read_text())]


def _tracking_root() -> Path:
    """The tree by which daemons are tracked: v1's pids controller, or the single tree of v2."""
    trees = hierarchies(_MOUNTINFO.read_text())
    for point, options in trees:
        if "pids" in options.split(","):
            return point / CGROUP
    if not trees:
        raise ClusterError("no cgroups are mounted: mount them (for instance install cgroupfs-mount) and try again")
    return trees[0][0] / CGROUP


def create() -> Path:
    """Make the cluster's cgroup in every tree; returns the one that daemons join."""
    for root in _roots():
        root.mkdir(exist_ok=True)
        _inherit_cpuset(root)
    daemons = _tracking_root() / _DAEMONS
    daemons.mkdir(exist_ok=True)
    return daemons


def _inherit_cpuset(root: Path) -> None:
    """A new cpuset of v1 is empty, and nothing can join it until it names CPUs and memory nodes."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        own = root / name
        if own.exists() and not own.read_text().strip():
            own.write_text((root.parent / name).read_text())


def members() -> list[int]:
    """Every process below the cluster's cgroup."""
    return _members(_roots())


def pod_members() -> list[int]:
    """Every process of a pod."""
    return _members([root / "kubepods" for root in _roots()])


def _members(roots: list[Path]) -> list[int]:
    pids: set[int] = set()
    for root in roots:
        for procs in root.rglob("cgroup.procs") if root.exists() else ():
            pids.update(int(pid) for pid in _read(procs).split())
    return sorted(pids)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the cgroup went away meanwhile
        return ""


def delete() -> None:
    """Remove the cluster's cgroup from every tree; its processes must have ended. Raises if one stays."""
    for attempt in range(50):
        left = [folder for root in _roots() for folder in _bottom_up(root) if not _removed(folder)]
        if not left:
            return
        time.sleep(0.02 * (attempt + 1))
    raise ClusterError(f"these cgroups cannot be removed: {', '.join(map(str, left))}")


def _bottom_up(root: Path) -> Iterator[Path]:
    if root.exists():
        yield from sorted((path for path in [root, *root.rglob("*")] if path.is_dir()), reverse=True)


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
