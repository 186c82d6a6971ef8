"""The image of the process that holds a pod's namespaces, packed here so that `up` needs no image builder."""

import hashlib
import io
import json
import tarfile

from tuneloop_localcluster import nodeconfig, programs
from tuneloop_localcluster.paths import Cache
from tuneloop_localcluster.runtime import Runtime
from tuneloop_localcluster.shell import run


def provide(cache: Cache) -> None:
    """Import the image unless containerd has it."""
    runtime = Runtime(cache.full)
    if nodeconfig.PAUSE_IMAGE in runtime.images():
        return
    architecture = run(["dpkg", "--print-architecture"]).strip()
    archive = pack(programs.program(cache, "pause").read_bytes(), nodeconfig.PAUSE_IMAGE, architecture)
    runtime.import_image(nodeconfig.PAUSE_IMAGE, lambda out: out.write(archive))


def pack(program: bytes, reference: str, architecture: str) -> bytes:
    """A docker archive with one layer that holds the program as /pause, run by nobody (65535)."""
    layer = _tar({"pause": program}, mode=0o755)
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"]}]
    files = {
        "config.json": json.dumps(config).encode(),
        "layer.tar": layer,
        "manifest.json": json.dumps(manifest).encode(),
    }
    return _tar(files, mode=0o644)


def _tar(files: dict[str, bytes], *, mode: int) -> bytes:
    """A tar of these files; the same files always give the same bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()
