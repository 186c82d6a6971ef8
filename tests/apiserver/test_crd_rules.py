"""Every CEL rule on the real API server: accepted, refused, and in which words."""

import json
from typing import Any

import crd_rules
import pytest
from crd_rules import Case, place
from kubernetes import client
from kubernetes.client.exceptions import ApiException

pytestmark = pytest.mark.usefixtures("crds")

CASES = [case for plural in crd_rules.KINDS for case in crd_rules.cases(plural)]


def refusals(api: client.ApiClient, namespace: str, case: Case) -> list[tuple[str, str]]:
    """(field, message) of each reason for which the API server refuses the manifest; empty when it is accepted."""
    objects = client.CustomObjectsApi(api)
    address = ("tuneloop.dev", "v1alpha1", namespace, case.plural)
    try:
        if case.old is None:
            objects.create_namespaced_custom_object(*address, case.manifest, dry_run="All", field_validation="Strict")
        else:
            _update(objects, address, case)
    except ApiException as error:
        if error.status != 422:
            raise
        causes: list[dict[str, str]] = json.loads(error.body)["details"]["causes"]
        return [(cause["field"], cause["message"]) for cause in causes]
    return []


def _update(objects: Any, address: tuple[str, str, str, str], case: Case) -> None:
    """A transition rule needs an object that exists: make it once, then replace it dry."""
    name = case.manifest["metadata"]["name"]
    try:
        found = objects.get_namespaced_custom_object(*address, name)
    except ApiException as error:
        if error.status != 404:
            raise
        found = objects.create_namespaced_custom_object(*address, case.old)
        if case.old is not None and "status" in case.old:
            body = {**found, "status": case.old["status"]}
            found = objects.replace_namespaced_custom_object_status(*address, name, body)
    version = {"metadata.resourceVersion": found["metadata"]["resourceVersion"]}
    objects.replace_namespaced_custom_object(*address, name, crd_rules.changed(case.manifest, version), dry_run="All")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_rule(api: client.ApiClient, namespace: str, case: Case) -> None:
    found = refusals(api, namespace, case)
    at = case.at.replace("{}", "[]") or "<nil>"
    of_this_rule = [message for field, message in found if place(field) == at and message.endswith(case.says)]
    if not case.accepted:
        assert of_this_rule, f"not refused by this rule; found: {found}"
    elif case.otherwise:
        assert not of_this_rule
        assert any(case.otherwise in message for _, message in found), found
    else:
        assert found == []
