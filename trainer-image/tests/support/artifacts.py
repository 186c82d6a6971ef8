"""An artifact to export, as publish seals it, and what exporting it takes."""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import stores
from tuneloop_core.api.finetunejob import Output

from tuneloop_trainer.download import S3Credentials
from tuneloop_trainer.exports import export
from tuneloop_trainer.files import folder_aside, folder_digest, seal
from tuneloop_trainer.guard import AddressGuard
from tuneloop_trainer.paths import Paths
from tuneloop_trainer.s3 import s3_client

LOOPBACK = AddressGuard(allowed=lambda address: address.is_loopback)
MIB = 2**20


def sealed_artifact(parent: Path, weights: bytes = b"weights" * 1000, **files: bytes) -> Path:
    """A folder named by its digest, with DIGEST inside."""
    content = {"adapter_model.safetensors": weights, "adapter_config.json": b"{}", "manifest.json": b'{"kind": 1}'}
    with folder_aside(parent) as aside:
        for name, data in {**content, "README.md": b"# card", "report.html": b"<p>", **files}.items():
            (aside / name).write_bytes(data)
        target = parent / folder_digest(aside).removeprefix("sha256:")
        seal(aside, target)
    return target


def contents(folder: Path) -> dict[str, bytes]:
    """Files by relative path."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def pod_with(root: Path, **secret: str) -> Paths:
    """A publish pod's folders, with the keys of the output Secret."""
    (root / "secrets/output").mkdir(parents=True, exist_ok=True)
    (root / "claims/output").mkdir(parents=True, exist_ok=True)
    for key, value in secret.items():
        (root / "secrets/output" / key).write_text(value + "\n")
    return Paths(root)


def run_export(artifact: Path, paths: Paths, uri: str, guard: AddressGuard = LOOPBACK, **output: Any) -> str:
    """Export as publish does."""
    hub_endpoint = output.pop("hub_endpoint", "")
    return export(artifact, Output.model_validate({"uri": uri, **output}), paths, guard, hub_endpoint)


@functools.cache
def s3_client_of(server: stores.S3Server) -> Any:
    """A client with the keys of the server's owner."""
    keys = S3Credentials(server.access_key_id, server.secret_access_key)
    return s3_client(server.endpoint, keys, LOOPBACK)


def run_until_killed(script: str, *arguments: str) -> None:
    """Run Python in a process that must end by SIGKILL: as a node that loses power ends it."""
    folder = str(Path(__file__).parent)
    code = f"import os, signal, sys; sys.path.insert(0, {folder!r})\n{script}"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "HF_HUB_DISABLE_XET": "1"},
    )
    assert done.returncode == -9, done.stderr
