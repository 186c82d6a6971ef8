"""Metadata that every child carries: labels that watches select on, and the owner that deletes it.

Never a finalizer.
"""

from typing import Any

from tuneloop_core.api.conditions import ObjectMeta
from tuneloop_core.constants import API_VERSION, LABEL_COMPONENT, LABEL_MANAGED_BY, MANAGED_BY
from tuneloop_operator.names import OWNER_LABELS

Obj = dict[str, Any]


def labels(kind: str, name: str, component: str) -> dict[str, str]:
    """Labels of a child of one custom resource."""
    return {LABEL_MANAGED_BY: MANAGED_BY, LABEL_COMPONENT: component, OWNER_LABELS[kind]: name}


def owner_reference(kind: str, owner: ObjectMeta) -> Obj:
    """The controller reference; garbage collection follows it."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": False,  # nobody needs update on our kind to delete in the foreground
    }


def child_metadata(kind: str, owner: ObjectMeta, name: str, component: str) -> Obj:
    """metadata of a namespaced child."""
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": labels(kind, owner.name, component),
        "ownerReferences": [owner_reference(kind, owner)],
    }


def namespace_metadata(namespace: str, name: str, component: str) -> Obj:
    """metadata of what a namespace has once, owned by nobody: it outlives every resource."""
    return {
        "name": name,
        "namespace": namespace,
        "labels": {LABEL_MANAGED_BY: MANAGED_BY, LABEL_COMPONENT: component},
    }
