"""Installs Tuneloop the way users do: ``helm upgrade --install`` of the chart, and nothing else."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from tuneloop_demo.errors import DemoError
from tuneloop_demo.hub import ENDPOINT, namespace
from tuneloop_demo.paths import repository
from tuneloop_demo.shell import run
from tuneloop_demo.target import Obj, Target

RELEASE = "tuneloop"
SYSTEM = "tuneloop-system"


def values(images: Mapping[str, str], namespaces: Sequence[str], *, local: bool) -> Obj:
    """Return the chart's values: these images, these namespaces, the mirror as the hub, room on a small machine.

    The local cluster's node has no device plugin: accelerators there are numbers that a test wrote.
    """
    small = {"requests": {"cpu": "25m", "memory": "96Mi"}, "limits": {"memory": "512Mi"}}
    return {
        "scope": {"namespaces": list(namespaces)},
        "images": {part: images[part] for part in ("operator", "trainer", "server")},
        "hub": {"endpoint": ENDPOINT},
        "accelerators": {"simulated": local},
        "store": {"size": "20Gi"},
        "operator": {"resources": small},
        "gateway": {"resources": small},
    }


def watched(target: Target) -> list[str]:
    """Return the namespaces that an earlier install watches and that are still there."""
    try:
        held = json.loads(run([*target.helm, "get", "values", RELEASE, "--namespace", SYSTEM, "--output", "json"]))
    except DemoError:  # not installed yet
        return []
    existing = set(target.call("get", "namespaces", "--field-selector", "status.phase=Active", "-o", "name").split())
    listed = (held or {}).get("scope", {}).get("namespaces", [])
    return [name for name in listed if f"namespace/{name}" in existing]


def drop_interrupted(target: Target) -> str:
    """Forget a helm run that was cut off, whose record would refuse every later one; what it made is adopted anew."""
    pending = f"owner=helm,name={RELEASE},status in (pending-install,pending-upgrade,pending-rollback)"
    return target.call("delete", "secrets", "--namespace", SYSTEM, "--selector", pending, "--ignore-not-found").strip()


def install(target: Target, images: Mapping[str, str], namespaces: Sequence[str]) -> str:
    """Install or upgrade the chart and wait until it runs; the namespaces must exist. Returns helm's words.

    Namespaces that are watched already stay watched: what was made there goes on.
    """
    target.apply(namespace(SYSTEM))
    drop_interrupted(target)
    together = sorted({*namespaces, *watched(target)})
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values(images, together, local=target.is_local), file)
        file.flush()
        chart: list[str | Path] = [*target.helm, "upgrade", "--install", RELEASE, repository() / "charts" / "tuneloop"]
        said = run([*chart, "--namespace", SYSTEM, "--values", file.name])
    for part in ("operator", "gateway"):
        target.wait_for_rollout(f"tuneloop-{part}", SYSTEM)
    return said
