"""Walks a cluster's OpenAPI v3 documents and yields what each field of each built-in kind is for.

Breadth first over all kinds at once, each field of a schema only where it lies shallowest: a container's ``image`` is
asked of a Pod and not of the nine kinds that have a Pod template. Pure; never talks to a cluster.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

BUILT_IN = "io.k8s."  # schemas of the cluster itself: what an operator added would differ from cluster to cluster
REFERENCE = "#/components/schemas/"
BOILERPLATE = frozenset({"apiVersion", "kind"})
# The kinds that people know best are asked first, so that shared fields are asked of them.
WELL_KNOWN = ("Pod", "Deployment", "Service", "Job", "CronJob", "StatefulSet", "DaemonSet", "Ingress", "ConfigMap")


@dataclass(frozen=True)
class Field:
    """One field: the kind it is asked of, its path (``spec.completions``) and the cluster's description of it."""

    kind: str
    path: str
    description: str

    @property
    def name(self) -> str:
        """The last segment of the path, without the list marker."""
        return self.path.rsplit(".", 1)[-1].removesuffix("[]")


def merge_schemas(documents: Mapping[str, Any]) -> dict[str, Any]:
    """All built-in schemas of all documents, by name; equal names hold equal schemas."""
    schemas: dict[str, Any] = {}
    for _, document in sorted(documents.items()):
        found = document.get("components", {}).get("schemas", {})
        schemas.update({name: schema for name, schema in found.items() if name.startswith(BUILT_IN)})
    return schemas


def kinds(schemas: Mapping[str, Any]) -> dict[str, str]:
    """Kind to the name of its schema: top-level kinds that have metadata; lists and options left out."""
    found: dict[str, str] = {}
    for name, schema in sorted(schemas.items()):
        versions = schema.get("x-kubernetes-group-version-kind", [])
        kind = versions[0]["kind"] if len(versions) == 1 else "List"  # options belong to many versions
        if "metadata" in schema.get("properties", {}) and not kind.endswith("List"):
            found.setdefault(kind, name)
    return found


def _rank(kind: str) -> tuple[int, str]:
    return (WELL_KNOWN.index(kind) if kind in WELL_KNOWN else len(WELL_KNOWN), kind)


def _reference(schema: Mapping[str, Any]) -> str | None:
    """Return the name of the schema that this one is, directly or by a single ``allOf``."""
    for candidate in (schema, *schema.get("allOf", [])):
        if "$ref" in candidate:
            return str(candidate["$ref"]).removeprefix(REFERENCE)
    return None


def _nested(schema: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return the schema below a property, and the marker that its path gets: ``[]`` for the items of a list."""
    if schema.get("type") == "array":
        return _reference(schema.get("items", {})), "[]"
    return _reference(schema), ""


def walk(schemas: Mapping[str, Any]) -> Iterator[Field]:
    """Yield every described field once, shallowest first, in the same order on every run."""
    roots = kinds(schemas)
    queue = deque((kind, "", roots[kind]) for kind in sorted(roots, key=_rank))
    seen = set(roots.values())
    while queue:
        kind, prefix, name = queue.popleft()
        for key, property_schema in sorted(schemas[name].get("properties", {}).items()):
            if not prefix and key in BOILERPLATE:
                continue
            nested, marker = _nested(property_schema)
            path = f"{prefix}{key}{marker}"
            if property_schema.get("description"):
                yield Field(kind, path.removesuffix("[]"), property_schema["description"])
            if nested is not None and nested in schemas and nested not in seen:
                seen.add(nested)
                queue.append((kind, f"{path}.", nested))
