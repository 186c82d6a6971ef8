"""The command line: up, down, status, load-image, kubeconfig, build."""

import argparse
import json
import sys
from collections.abc import Sequence

from tuneloop_localcluster import apionly, cluster, components, controlplane, images, imagetable
from tuneloop_localcluster.apiserver import ControlPlane
from tuneloop_localcluster.background import in_background
from tuneloop_localcluster.errors import ClusterError
from tuneloop_localcluster.locks import exclusively
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
    made = {}
    for name, function, words in (
        ("up", _up, "start the cluster; changes nothing if it is up"),
        ("down", _down, "end the cluster and delete its state; caches stay"),
        ("status", _status, "say what runs; exit code 0 if all of it does"),
        ("kubeconfig", _kubeconfig, "print the path of the admin's kubeconfig"),
    ):
        made[name] = commands.add_parser(name, help=words, description=words)
        made[name].add_argument("--api-only", action="store_true", help="only etcd and kube-apiserver, on loopback")
        made[name].set_defaults(run=function)
    made["up"].add_argument("--images", nargs="+", default=[], metavar="NAME", help="build and load these meanwhile")
    made["down"].add_argument("--all", action="store_true", help="both variants")
    made["down"].add_argument("--purge", action="store_true", help="delete the cached images as well")
    words = "build images of this checkout as far as needed, give them to the cluster, print name=reference lines"
    load = commands.add_parser("load-image", help=words, description=words)
    load.add_argument("names", nargs="+", metavar="NAME", help=f"one of {', '.join(imagetable.NAMES)}")
    load.add_argument("--json", action="store_true", help="print one JSON object instead")
    load.add_argument("--registry", default="", metavar="HOST/PREFIX", help="push there instead of loading")
    words = "for the images that declare it, such as ENGINE=gpu for server; may be repeated"
    load.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", dest="arguments", help=words)
    load.set_defaults(run=_load_image)
    words = "install packages and build programs into the cache; start nothing"
    commands.add_parser("build", help=words, description=words).set_defaults(run=_build)
    return parser


def _up(options: argparse.Namespace, here: Cache, progress: Progress) -> None:
    if options.api_only and options.images:
        raise ClusterError("--images needs a cluster that runs pods: leave --api-only out")
    # Building images waits for the network where building programs waits for the CPU, so they go side by side.
    built = in_background(lambda: images.build(options.images, progress)) if options.images else None
    with exclusively(here.lock, progress):
        (apionly if options.api_only else cluster).up(here, progress)
    if built is not None:
        built()
        _print(images.ensure(options.images, progress=progress), as_json=False)
    progress.say(f"done; export KUBECONFIG={_plane(options, here).state.admin_kubeconfig}")


def _down(options: argparse.Namespace, here: Cache, progress: Progress) -> None:
    with exclusively(here.lock, progress):
        if options.api_only or options.all:
            apionly.down(here, progress)
        if options.all or not options.api_only:
            cluster.down(here, progress, purge=options.purge)
    progress.say("done")


def _status(options: argparse.Namespace, here: Cache, progress: Progress) -> int:
    plane = _plane(options, here)
    for name in apionly.NAMES if options.api_only else cluster.NAMES:
        pid = controlplane.daemon(plane, name).pid
        print(f"{name:24} {f'pid {pid}' if pid else 'not running'}")
    healthy = controlplane.alive(plane, apionly.NAMES) if options.api_only else cluster.healthy(here)
    print(f"{'cluster':24} {f'ready at {plane.server}' if healthy else 'not ready'}")
    return 0 if healthy else 1


def _kubeconfig(options: argparse.Namespace, here: Cache, progress: Progress) -> None:
    path = _plane(options, here).state.admin_kubeconfig
    if not path.exists():
        raise ClusterError(f"there is no {path}: run `localcluster up{' --api-only' * options.api_only}` first")
    print(path)


def _plane(options: argparse.Namespace, here: Cache) -> ControlPlane:
    return apionly.plane(here) if options.api_only else components.control_plane(here)


def _build(options: argparse.Namespace, here: Cache, progress: Progress) -> None:
    with exclusively(here.lock, progress):
        cluster.provide(here, progress)
    progress.say("done")


def _load_image(options: argparse.Namespace, here: Cache, progress: Progress) -> None:
    arguments = imagetable.build_arguments(options.arguments)
    built = images.ensure(options.names, registry=options.registry, arguments=arguments, progress=progress)
    _print(built, as_json=options.json)


def _print(references: dict[str, str], *, as_json: bool) -> None:
    print(json.dumps(references) if as_json else "\n".join(f"{k}={v}" for k, v in references.items()), flush=True)
