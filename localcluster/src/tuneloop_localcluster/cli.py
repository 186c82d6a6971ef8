"""The command line: up, down, status, load-image, kubeconfig, build."""

import argparse
import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tuneloop_localcluster import apionly, controlplane, programs, requirements, versions
from tuneloop_localcluster.errors import ClusterError
from tuneloop_localcluster.paths import Cache, cache
from tuneloop_localcluster.progress import Progress


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it did what was asked, 1 with a sentence on stderr if not."""
    options = _parser().parse_args(arguments)
    progress = Progress()
    try:
        return int(options.run(options, cache(), progress) or 0)
    except ClusterError as error:
        print(f"localcluster: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="localcluster", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function, words in (
        ("up", _up, "start the cluster; changes nothing if it is up"),
        ("down", _down, "end the cluster and delete its state; caches stay"),
        ("status", _status, "say what runs"),
        ("kubeconfig", _kubeconfig, "print the path of the admin's kubeconfig"),
    ):
        command = commands.add_parser(name, help=words)
        command.add_argument("--api-only", action="store_true", help="only etcd and kube-apiserver, on loopback")
        command.set_defaults(run=function)
    build = commands.add_parser("build", help="build the programs into the cache and start nothing")
    build.set_defaults(run=_build)
    return parser


@contextmanager
def _exclusively(lock: Path, progress: Progress) -> Iterator[None]:
    """Let one process at a time start or stop clusters."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(f"another localcluster command runs; waiting for {lock}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _up(options: argparse.Namespace, here: Cache, progress: Progress) -> None:
    with _exclusively(here.lock, progress):
        apionly.up(here, progress)
    progress.say("done")


def _down(options: argparse.Namespace, here: Cache, progress: Progress) -> None:
    with _exclusively(here.lock, progress):
        apionly.down(here, progress)
    progress.say("done")


def _status(options: argparse.Namespace, here: Cache, progress: Progress) -> int:
    plane = apionly.plane(here)
    for name in apionly.NAMES:
        pid = controlplane.daemon(plane, name).pid
        print(f"{name:24} {'pid ' + str(pid) if pid else 'not running'}")
    return 0 if controlplane.alive(plane, apionly.NAMES) else 1


def _kubeconfig(options: argparse.Namespace, here: Cache, progress: Progress) -> None:
    path = apionly.plane(here).state.admin_kubeconfig
    if not path.exists():
        raise ClusterError(f"there is no {path}: run `localcluster up --api-only` first")
    print(path)


def _build(options: argparse.Namespace, here: Cache, progress: Progress) -> None:
    requirements.require_disk(here.root, requirements.BUILD_GIB, "building Kubernetes")
    with _exclusively(here.lock, progress):
        programs.build(here, versions.PROGRAM_SETS, progress)
        _link(here)
    progress.say("done")


def _link(here: Cache) -> None:
    """Give helm and kubectl stable paths in the cache's bin folder."""
    folder = here.root / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("kubectl", "helm"):
        aside = folder / f".{name}.{os.getpid()}"
        aside.symlink_to(programs.program(here, name))
        aside.replace(folder / name)
