"""containerd as the cluster uses it: which images it holds, and getting rid of a dead cluster's containers."""

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import PIPE
from typing import IO, Any

from tuneloop_localcluster.errors import ClusterError
from tuneloop_localcluster.paths import State
from tuneloop_localcluster.shell import run, try_run

_BATCH = 50
_SNAPSHOTTER = "overlayfs"
_GC_ROOT = "containerd.io/gc.root"


class Runtime:
    """A running containerd, by its socket. Everything is in the namespace that the kubelet uses."""

    def __init__(self, state: State) -> None:
        self._ctr = ["ctr", "--address", str(state.containerd_socket), "--namespace", "k8s.io"]

    def answers(self) -> bool:
        """Whether it takes requests."""
        return try_run([*self._ctr, "version"])

    def images(self) -> set[str]:
        """References of all images it holds."""
        return set(run([*self._ctr, "images", "list", "--quiet"]).split())

    def delete_containers(self) -> int:
        """Delete all containers (their processes must have ended) with their writable layers; returns how many."""
        containers = run([*self._ctr, "containers", "list", "--quiet"]).split()
        for start in range(0, len(containers), _BATCH):
            batch = containers[start : start + _BATCH]
            for name in batch:
                try_run([*self._ctr, "tasks", "delete", "--force", name])
            run([*self._ctr, "containers", "delete", *batch])
        return len(containers)

    def snapshots(self) -> set[str]:
        """Names of all snapshots: those of unpacked layers are chain ids."""
        return {row.split()[0] for row in self._snapshots("list").splitlines()[1:]}

    def prepare_snapshot(self, key: str, parent: str) -> Path:
        """Begin a snapshot on top of another ("" for none); returns the folder that its files belong in."""
        self.drop_snapshot(key)  # one that a killed import began
        mounts = json.loads(self._snapshots("prepare", "--mounts", key, *([parent] if parent else [])))
        return snapshot_folder(mounts[0])

    def commit_snapshot(self, name: str, key: str) -> None:
        """Finish a snapshot under its name; it stays until `release` even if no image needs it."""
        self._snapshots("commit", name, key)
        self._snapshots("label", name, f"{_GC_ROOT}=adopted")

    def drop_snapshot(self, key: str) -> None:
        """Remove a snapshot that was begun, if there is one."""
        try_run([*self._ctr, "snapshots", "--snapshotter", _SNAPSHOTTER, "delete", key])

    def release(self, names: Sequence[str]) -> None:
        """Leave snapshots to collection: from now on they live as long as an image needs them."""
        for name in names:
            self._snapshots("label", name, f"{_GC_ROOT}=")

    def _snapshots(self, *words: str) -> str:
        return run([*self._ctr, "snapshots", "--snapshotter", _SNAPSHOTTER, *words])

    def import_image(self, what: str, write: Callable[[IO[bytes]], object]) -> None:
        """Import and unpack the archive (docker or OCI) that `write` writes."""
        command = [*self._ctr, "images", "import", "--snapshotter", _SNAPSHOTTER, "-"]
        with tempfile.TemporaryFile() as said, subprocess.Popen(command, stdin=PIPE, stdout=said, stderr=said) as ctr:
            assert ctr.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # its exit code and words say why
                write(ctr.stdin)
                ctr.stdin.close()
            code = ctr.wait()
            said.seek(0)
            if code != 0:
                raise ClusterError(f"importing {what} failed with {code}:\n{said.read().decode(errors='replace')}")

    def delete_images(self, references: Sequence[str]) -> None:
        """Forget images; their layers go once no other image uses them."""
        if references:
            run([*self._ctr, "images", "delete", *references])
            aliases = stray_aliases(run([*self._ctr, "images", "list"]))
            run([*self._ctr, "images", "delete", "--sync", *aliases])

    def discard_layers(self, reference: str) -> None:
        """Delete an unpacked image's layer blobs, which double its size on disk; containers run from the snapshots.

        It is what containerd's own `discard_unpacked_layers` does for images that it pulls.
        """
        row = run([*self._ctr, "images", "list", f"name=={reference}"]).splitlines()[1]
        manifest = json.loads(run([*self._ctr, "content", "get", row.split()[2]]))
        layers = {layer["digest"] for layer in manifest["layers"]}
        held = set(run([*self._ctr, "content", "list", "--quiet"]).split())
        if layers & held:
            run([*self._ctr, "content", "delete", *sorted(layers & held)])


def snapshot_folder(mount: dict[str, Any]) -> Path:
    """Where the files of a snapshot being made belong: overlayfs's upper folder, or the whole of one without parent."""
    options: list[str] = mount.get("Options") or mount.get("options") or []
    upper = [option.removeprefix("upperdir=") for option in options if option.startswith("upperdir=")]
    return Path(upper[0] if upper else str(mount.get("Source") or mount.get("source")))


def stray_aliases(table: str) -> list[str]:
    """The kubelet's by-digest names of images that have no other name left, out of `ctr images list`."""
    rows = [line.split()[:3] for line in table.splitlines()[1:]]
    named = {digest for name, _, digest in rows if not name.startswith("sha256:")}
    return [name for name, _, digest in rows if name.startswith("sha256:") and digest not in named]
