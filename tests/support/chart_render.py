"""Renders the chart with the real helm, built by the local cluster's own code into the cache when it is missing.

``python tests/support/chart_render.py`` only sees to it that helm is there; the tier runner does so before the tests.
"""

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tuneloop_localcluster import programs, versions
from tuneloop_localcluster.paths import cache
from tuneloop_localcluster.progress import Progress

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "tuneloop"
RELEASE, NAMESPACE = "tuneloop", "tuneloop-system"

Obj = dict[str, Any]


@functools.cache
def helm() -> Path:
    """The helm of the cache; building it takes some minutes, once."""
    programs.build(cache(), [versions.HELM], Progress())
    return programs.program(cache(), "helm")


def run_helm(*arguments: str, values: str = "") -> "subprocess.CompletedProcess[str]":
    """Run helm; ``values`` are YAML on its standard input."""
    given = ["--values", "-"] if values else []
    command = [str(helm()), *arguments, *given]
    return subprocess.run(command, input=values, capture_output=True, text=True, check=False, timeout=120)


@functools.cache
def template(values: str = "", namespace: str = NAMESPACE) -> "subprocess.CompletedProcess[str]":
    """Render the chart as an install would, without a cluster."""
    return run_helm("template", RELEASE, str(CHART), "--namespace", namespace, values=values)


def objects(values: str = "", namespace: str = NAMESPACE) -> list[Obj]:
    """The rendered objects, in a stable order."""
    done = template(values, namespace)
    assert done.returncode == 0, done.stderr
    found = [obj for obj in yaml.load_all(done.stdout, yaml.CSafeLoader) if obj]  # the CRDs are long
    return sorted(found, key=lambda obj: (obj["kind"], obj["metadata"].get("namespace", ""), obj["metadata"]["name"]))


def of_kind(found: list[Obj], *kinds: str) -> list[Obj]:
    """The objects of some kinds."""
    return [obj for obj in found if obj["kind"] in kinds]


if __name__ == "__main__":
    sys.stdout.write(f"{helm()}\n")
