"""What a cluster leaves on the machine outside its folder, and how it is taken away."""

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from tuneloop_localcluster.errors import ClusterError
from tuneloop_localcluster.shell import run, try_run

_MOUNTINFO = Path("/proc/self/mountinfo")
_CNI_RESULTS = Path("/var/lib/cni/results")
_CNI_LOCK = Path("/etc/cni/net.d/cni.lock")  # empty; containerd makes it, and its folder where there was none
_CONTAINER_LOGS = Path("/var/log/containers")
_SHIM_SOCKETS = Path("/run/containerd/s")
_DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")
# Removed if nothing is left in them, the inner ones first.
_FOLDERS = (
    _CNI_RESULTS,
    _CNI_RESULTS.parent,
    _CNI_LOCK.parent,
    _CNI_LOCK.parent.parent,
    _CONTAINER_LOGS,
    _SHIM_SOCKETS,
    Path("/run/containerd/fifo"),
    Path("/run/containerd/runc/k8s.io"),
    Path("/run/containerd/runc"),
    _SHIM_SOCKETS.parent,
    _DEVICE_PLUGINS,
    _DEVICE_PLUGINS.parent,
)
# The kubelet sets these on the whole machine.
_KUBELET_SYSCTLS = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops")


def mounts_below(folder: Path, mountinfo: str) -> list[Path]:
    """Mount points at or below `folder`, the deepest and latest first; spaces in names are decoded."""
    points = [Path(_decode(line.split()[4])) for line in mountinfo.splitlines()]
    return [point for point in reversed(points) if point == folder or folder in point.parents]


def _decode(name: str) -> str:
    """proc(5) writes space, tab, newline and backslash as octal."""
    for octal, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        name = name.replace(octal, character)
    return name


def unmount_below(folder: Path) -> None:
    """Unmount everything at or below `folder`; raises a ClusterError if something stays."""
    for point in mounts_below(folder, _MOUNTINFO.read_text()):
        if not try_run(["umount", point]):
            run(["umount", "--lazy", point])
    left = mounts_below(folder, _MOUNTINFO.read_text())
    if left:
        raise ClusterError(f"still mounted: {', '.join(map(str, left))}; unmount them with `umount` and try again")


def delete_folder(folder: Path) -> None:
    """Delete a folder in which nothing is mounted any more."""
    unmount_below(folder)
    if folder.exists():
        shutil.rmtree(folder)


def delete_traces(state: Path) -> None:
    """Delete what kubelet, CNI and shims wrote to fixed places outside the state folder."""
    for result in _CNI_RESULTS.glob("*"):
        if str(state) in result.read_text(errors="replace"):
            result.unlink()
    for link in _CONTAINER_LOGS.glob("*"):
        if link.is_symlink() and state in link.readlink().parents:
            link.unlink()
    sockets = [*_SHIM_SOCKETS.glob("*"), *_DEVICE_PLUGINS.glob("*.sock")]
    for socket in unused_sockets(sockets, Path("/proc/net/unix").read_text()):
        socket.unlink(missing_ok=True)
    if [*_CNI_LOCK.parent.glob("*")] == [_CNI_LOCK]:
        _CNI_LOCK.unlink()
    for folder in _FOLDERS:
        with contextlib.suppress(OSError):
            folder.rmdir()


def unused_sockets(paths: Iterable[Path], listening: str) -> list[Path]:
    """The sockets of these that no process of the machine has open, by the text of /proc/net/unix."""
    held = {line.rsplit(" ", 1)[-1] for line in listening.splitlines()}
    return [path for path in paths if str(path) not in held]


def remember_sysctls(file: Path) -> None:
    """Note the machine's values of what the kubelet will change, once."""
    if not file.exists():
        values = (f"{name}={Path('/proc/sys', name).read_text().strip()}\n" for name in _KUBELET_SYSCTLS)
        file.write_text("".join(values))


def restore_sysctls(file: Path) -> None:
    """Write the remembered values back."""
    if file.exists():
        for line in file.read_text().splitlines():
            name, _, value = line.partition("=")
            Path("/proc/sys", name).write_text(value)
