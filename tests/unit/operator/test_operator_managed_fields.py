"""Whether a child is as it was applied: by the API server's own book of who set which field."""

import copy
from typing import Any

import pytest

from tuneloop_operator.policy.drift import is_as_applied
from tuneloop_operator.reconcile.namespaces import with_digest

# As a Kubernetes API server answers after an apply; tests/apiserver/test_operator_drift.py has the real ones.
MANIFEST = with_digest(
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "x", "namespace": "team", "labels": {"app": "x"}, "ownerReferences": [{"uid": "u"}]},
        "spec": {
            "selector": {"app": "x"},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        },
    }
)
FIELDS: dict[str, Any] = {
    "f:metadata": {
        "f:annotations": {"f:tuneloop.dev/applied": {}},
        "f:labels": {"f:app": {}},
        "f:ownerReferences": {'k:{"uid":"u"}': {}},
    },
    "f:spec": {
        "f:selector": {},
        "f:ports": {'k:{"port":80,"protocol":"TCP"}': {".": {}, "f:name": {}, "f:port": {}, "f:protocol": {}}},
    },
}


def found(fields: dict[str, Any], manager: str = "tuneloop", operation: str = "Apply") -> dict[str, Any]:
    entry = {"manager": manager, "operation": operation, "fieldsV1": fields}
    return MANIFEST | {"metadata": MANIFEST["metadata"] | {"managedFields": [{"manager": "kubectl"}, entry]}}


def without(*path: str) -> dict[str, Any]:
    """The book after somebody took a field; what has nothing left is not in it any more."""
    fields = copy.deepcopy(FIELDS)
    for length in range(len(path), 0, -1):
        block = fields
        for key in path[: length - 1]:
            block = block[key]
        del block[path[length - 1]]
        if block:
            break
    return fields


PORT = 'k:{"port":80,"protocol":"TCP"}'


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (found(FIELDS), True),
        (None, False),
        (MANIFEST, False),  # nobody says whose its fields are
        (found({}), False),
        (found(FIELDS, manager="kubectl"), False),
        (found(FIELDS, operation="Update"), False),
        (found(without("f:spec", "f:selector")), False),
        (found(without("f:spec", "f:ports", PORT)), False),
        (found(without("f:spec", "f:ports", PORT, "f:name")), False),
        (found(without("f:metadata", "f:labels", "f:app")), False),
        (found(without("f:metadata", "f:ownerReferences")), False),
        (with_digest(MANIFEST | {"spec": {}}), False),  # applied from another manifest
    ],
)
def test_is_as_applied(there: dict[str, Any] | None, expected: bool) -> None:
    assert is_as_applied(MANIFEST, there) is expected
