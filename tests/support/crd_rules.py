"""The table of CEL rules with an accept and a reject case each, and what tests need to use it.

``crd_rules_<plural>.yaml`` beside this file holds the rows. A case changes some paths of the smallest manifest that
is accepted; ``null`` removes one.
"""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("finetunejobs", "modeldeployments")
MINIMAL: dict[str, dict[str, Any]] = {
    "finetunejobs": {
        "apiVersion": "tuneloop.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "rules"},
        "spec": {"model": {"uri": "hf://org/name"}, "dataset": {"uri": "hf://datasets/org/name"}},
    },
    "modeldeployments": {
        "apiVersion": "tuneloop.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "rules"},
        "spec": {"model": {"uri": "hf://org/name"}},
    },
}


@dataclass(frozen=True)
class Case:
    """One manifest and the rule it is about. ``otherwise`` names the other refusal that an accept case still meets."""

    plural: str
    at: str
    says: str
    accepted: bool
    manifest: dict[str, Any]
    old: dict[str, Any] | None = None
    otherwise: str = ""

    @property
    def title(self) -> str:
        """For pytest: where, which way, and the beginning of the words."""
        return f"{self.plural}:{self.at}:{'accept' if self.accepted else 'reject'}:{self.says[:40]}"


def crd(plural: str) -> dict[str, Any]:
    """The generated CRD."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "crds" / f"{plural}.tuneloop.dev.yaml").read_text())
    return found


def schema(plural: str) -> dict[str, Any]:
    """The schema of its one version."""
    found: dict[str, Any] = crd(plural)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def nodes(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node of a schema with its path; ``[]`` is a list's item, ``{}`` a map's value."""
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}" if path else name)
    if "items" in node:
        yield from nodes(node["items"], f"{path}[]")
    if "additionalProperties" in node:
        yield from nodes(node["additionalProperties"], f"{path}{{}}")


def rules(plural: str) -> list[tuple[str, str]]:
    """(path that the error is shown at, message) of every CEL rule in the CRD."""
    return [
        ((path + rule.get("fieldPath", "")).lstrip("."), rule["message"])
        for path, node in nodes(schema(plural))
        for rule in node.get("x-kubernetes-validations", [])
    ]


def rows(plural: str) -> list[dict[str, Any]]:
    """The rows of the table."""
    found: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name(f"crd_rules_{plural}.yaml").read_text())
    return found


def changed(manifest: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with dotted paths set, or removed where the value is None."""
    result = copy.deepcopy(manifest)
    for path, value in changes.items():
        *parents, last = path.split(".")
        block = result
        for parent in parents:
            block = block.setdefault(parent, {})
        if value is None:
            block.pop(last, None)
        else:
            block[last] = value
    return result


def cases(plural: str) -> list[Case]:
    """All cases of all rows."""
    return [case for row in rows(plural) for case in _row_cases(plural, row)]


def _row_cases(plural: str, row: dict[str, Any]) -> Iterator[Case]:
    base = changed(MINIMAL[plural], row.get("with", {}))
    old = changed(base, row["old"]) if "old" in row else None
    for accepted, values, patches in ((True, "good", "accept"), (False, "bad", "reject")):
        direct = [{row["at"]: value} for value in row.get(values, [])]
        for changes in (*direct, *row.get(patches, [])):
            manifest = changed(old or base, changes)
            otherwise = row.get("otherwise", "") if accepted else ""
            yield Case(plural, row["at"], row["says"], accepted, manifest, old, otherwise)


def place(field: str) -> str:
    """The path of an error without indices and keys: ``spec.a[0].b[key]`` is ``spec.a[].b[]``."""
    return re.sub(r"\[[^]]*\]", "[]", field)
