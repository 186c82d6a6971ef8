"""The cluster that the demo runs on, through kubectl and helm: what users type is what the demo does.

Either the local cluster, brought up here, or a context that the user has. Never reads a kubeconfig's contents.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tuneloop_demo.errors import DemoError
from tuneloop_demo.paths import cache, repository
from tuneloop_demo.shell import run

IMAGES = ("operator", "trainer", "server", "hub-mirror")
Obj = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """One cluster. ``kubectl`` and ``helm`` are the programs with the arguments that choose it."""

    kubectl: tuple[str, ...]
    helm: tuple[str, ...]
    registry: str = ""  # HOST/PREFIX that images are pushed to; empty on the local cluster

    @property
    def is_local(self) -> bool:
        """Whether it is the local cluster, whose Services this machine reaches by their addresses."""
        return not self.registry

    def call(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl; raise ``DemoError`` with its words when it fails."""
        return run([*self.kubectl, *arguments], stdin=stdin)

    def get(self, kind: str, name: str, namespace: str) -> Obj | None:
        """Return one object, or None when there is none."""
        text = self.call("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        return dict(json.loads(text)) if text.strip() else None

    def raw(self, path: str) -> Any:
        """Return a JSON document of the API server."""
        return json.loads(self.call("get", "--raw", path))

    def apply(self, *manifests: Obj) -> str:
        """``kubectl apply`` of manifests, as JSON: PyYAML writes the text ``1e-3`` so that Go reads a number."""
        return self.call("apply", "-f", "-", stdin=as_list(manifests))

    def wait_for_rollout(self, deployment: str, namespace: str, minutes: int = 10) -> None:
        """Wait until a Deployment runs as it should."""
        self.call("rollout", "status", f"deployment/{deployment}", "-n", namespace, f"--timeout={minutes}m")

    def prefix(self) -> str:
        """Return ``kubectl`` as the user can type it for this cluster: by its path, unless that is the one on PATH."""
        program, *chosen = self.kubectl
        return shlex.join(["kubectl" if shutil.which("kubectl") == program else program, *chosen])


def as_list(manifests: Sequence[Obj]) -> str:
    """Return manifests as one JSON List."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})


def _localcluster(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the local cluster's command line with its progress on this terminal; its standard output is returned."""
    command = [sys.executable, "-m", "tuneloop_localcluster", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise DemoError(f"`localcluster {' '.join(arguments)}` failed; its words are above.")
    return done


def bring_up() -> Target:
    """Bring the local cluster up, its images built and loaded meanwhile; changes nothing where it is up."""
    _localcluster("up", "--images", *IMAGES)
    kubeconfig = _localcluster("kubeconfig").stdout.strip()
    folder = cache() / "bin"
    return Target(
        kubectl=(str(folder / "kubectl"), "--kubeconfig", kubeconfig),
        helm=(str(folder / "helm"), "--kubeconfig", kubeconfig),
    )


def _program(name: str) -> str:
    """Return the user's own program, else the one that the local cluster built."""
    found = shutil.which(name) or str(cache() / "bin" / name)
    if not Path(found).exists():
        raise DemoError(f"{name} is not on PATH: install it, or run `make demo` once without CONTEXT, which builds it.")
    return found


def use_context(context: str, registry: str) -> Target:
    """Take a cluster that the user has; it must answer."""
    target = Target(
        kubectl=(_program("kubectl"), "--context", context),
        helm=(_program("helm"), "--kube-context", context),
        registry=registry,
    )
    target.call("version")
    return target


def choose(context: str, registry: str) -> Target:
    """Return the cluster that the arguments mean."""
    if bool(context) != bool(registry):
        lacks = "REGISTRY=HOST/PREFIX, which the cluster pulls images from" if context else "CONTEXT=NAME"
        raise DemoError(f"CONTEXT and REGISTRY go together: give {lacks}, or neither to use the local cluster.")
    return use_context(context, registry) if context else bring_up()


def provide_images(target: Target) -> dict[str, str]:
    """Return the reference of each image as the cluster pulls it, built and pushed or loaded where it was not."""
    registry = ("--registry", target.registry) if target.registry else ()
    references = json.loads(_localcluster("load-image", *IMAGES, "--json", *registry).stdout)
    return {name: str(references[name]) for name in IMAGES}


def pipe(target: Target, folder: Path, *arguments: str) -> None:
    """Send a folder as a tar archive to a command in a pod (``arguments`` of kubectl); raise when either end fails."""
    tar = ["tar", "-C", str(folder), "--owner=65532", "--group=65532", "-cf", "-", "."]
    with subprocess.Popen(tar, stdout=subprocess.PIPE, env={**os.environ, "TAR_OPTIONS": ""}) as sender:
        done = subprocess.run(
            [*target.kubectl, *arguments], stdin=sender.stdout, capture_output=True, text=True, check=False
        )
    if done.returncode != 0 or sender.returncode != 0:
        raise DemoError(f"{folder} could not be copied into the cluster: {done.stderr.strip()}")


def example(name: str) -> Obj:
    """Return one of the examples, as a manifest."""
    return dict(yaml.safe_load((repository() / "examples" / name).read_text(encoding="utf-8")))
