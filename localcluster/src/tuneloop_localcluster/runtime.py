"""containerd as the cluster uses it: which images it holds, and getting rid of a dead cluster's containers."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tuneloop_localcluster.errors import ClusterError
from tuneloop_localcluster.paths import State
from tuneloop_localcluster.shell import run, try_run

_BATCH = 50


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

    def import_from(self, producer: Sequence[str | Path], what: str) -> None:
        """Import the docker archive that `producer` writes to its stdout; no copy of it touches the disk."""
        with subprocess.Popen([str(part) for part in producer], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as push:
            consumer = [*self._ctr, "images", "import", "--snapshotter", "overlayfs", "-"]
            done = subprocess.run(consumer, stdin=push.stdout, capture_output=True, text=True, check=False)
            if push.stdout:
                push.stdout.close()
            said = push.stderr.read().decode(errors="replace") if push.stderr else ""
        if push.returncode != 0 or done.returncode != 0:
            raise ClusterError(f"importing {what} failed:\n{said}{done.stdout}{done.stderr}")

    def delete_images(self, references: Sequence[str]) -> None:
        """Forget images; their layers go once no other image uses them."""
        if references:
            run([*self._ctr, "images", "delete", "--sync", *references])

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
