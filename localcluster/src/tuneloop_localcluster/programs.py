"""Go programs, built once per version into the cache. An entry appears whole or not at all."""

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tuneloop_localcluster import versions
from tuneloop_localcluster.errors import ClusterError
from tuneloop_localcluster.gotool import provide_go
from tuneloop_localcluster.locks import exclusively
from tuneloop_localcluster.paths import Cache, package_file
from tuneloop_localcluster.progress import Progress
from tuneloop_localcluster.shell import run
from tuneloop_localcluster.versions import MODULES, ProgramSet


def key(programs: ProgramSet, sources: Mapping[str, bytes]) -> str:
    """The name of a set's cache entry: it changes with any source, target or flag."""
    digest = hashlib.sha256(repr((programs.targets, programs.ldflags)).encode())
    for name in sorted(sources):
        digest.update(name.encode() + b"\0" + sources[name] + b"\0")
    return f"{programs.name}-{digest.hexdigest()[:12]}"


def sources_of(module: Path, programs: ProgramSet) -> dict[str, bytes]:
    """What decides a set's binaries: the pinned versions, and the folders of programs that are our own."""
    own = [module / target for target in programs.targets if target.startswith("./")]
    files = [module / "go.mod", module / "go.sum", *(path for folder in own for path in folder.rglob("*.go"))]
    return {str(path.relative_to(module)): path.read_bytes() for path in files}


def entry(cache: Cache, programs: ProgramSet) -> Path:
    """The folder of a set's binaries, whether built or not."""
    return cache.programs / key(programs, sources_of(_module(programs), programs))


def program(cache: Cache, name: str) -> Path:
    """The path of a built program; raises a ClusterError if no set makes it or it is not built yet."""
    for programs in versions.PROGRAM_SETS:
        if name in programs.programs:
            path = entry(cache, programs) / name
            if not path.exists():
                raise ClusterError(f"{name} is not built yet: run `localcluster build`")
            return path
    known = ", ".join(name for programs in versions.PROGRAM_SETS for name in programs.programs)
    raise ClusterError(f"no program is called {name}: there are {known}")


def missing(cache: Cache, sets: Iterable[ProgramSet]) -> list[ProgramSet]:
    """The sets that the cache lacks."""
    return [programs for programs in sets if not entry(cache, programs).exists()]


def build(cache: Cache, sets: Iterable[ProgramSet], progress: Progress) -> None:
    """Build what the cache lacks, one set after the other: each uses all cores and reuses what the last compiled.

    Waits for another process that builds, and then builds only what that one did not.
    """
    asked = list(sets)
    if missing(cache, asked):
        with exclusively(cache.programs_lock, progress):
            _build_all(cache, missing(cache, asked), progress)


def _module(programs: ProgramSet) -> Path:
    return package_file("go", MODULES[programs.name])


def _build_all(cache: Cache, wanted: Sequence[ProgramSet], progress: Progress) -> None:
    if not wanted:
        return
    go = provide_go(cache, progress)
    for programs in wanted:
        with progress.step(f"build {', '.join(programs.programs)}", announce=True):
            _build(cache, programs, go)
    if not missing(cache, versions.PROGRAM_SETS):
        with progress.step("drop Go's caches, which nothing needs any more"):
            shutil.rmtree(cache.go, ignore_errors=True)


def _build(cache: Cache, programs: ProgramSet, go: Path) -> None:
    final = entry(cache, programs)
    aside = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    flags = ["-trimpath", "-ldflags", programs.ldflags, "-o", f"{aside}/"]
    log = cache.programs / f"{programs.name}.log"
    run([go, "build", *flags, *programs.targets], env=_environment(cache), cwd=_module(programs), log=log)
    aside.rename(final)


def _environment(cache: Cache) -> dict[str, str]:
    own = {"GOCACHE": str(cache.go / "build"), "GOMODCACHE": str(cache.go / "mod"), "CGO_ENABLED": "0"}
    # Modules must be removable with the cache; GOWORK=off: a go.work above the cache is none of ours.
    return {**os.environ, **own, "GOFLAGS": "-modcacherw -buildvcs=false", "GOWORK": "off"}


def link(cache: Cache) -> None:
    """Give the tools that people and tests call stable paths in the cache's bin folder, as far as they are built."""
    folder = cache.root / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    for programs, tool in ((versions.API_SERVER, "kubectl"), (versions.HELM, "helm")):
        if entry(cache, programs).exists():
            aside = folder / f".{tool}.{os.getpid()}"
            aside.symlink_to(entry(cache, programs) / tool)
            aside.replace(folder / tool)
