"""The chart on a real API server: every object is taken, the pods pass Pod Security, rights are as narrow as said."""

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from chart_render import Obj, objects, of_kind

Kubectl = Callable[..., str]
WATCHED = "watched"


@pytest.fixture(scope="module")
def places(kubectl: Kubectl, crds: list[str]) -> dict[str, str]:
    """Namespaces of this run: the release's own, one that is watched, one that is not; all under Pod Security."""
    run = uuid.uuid4().hex[:8]
    names = {role: f"chart-{role}-{run}" for role in ("system", WATCHED, "foreign")}
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    made = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        for name in names.values()
    ]
    kubectl("create", "-f", "-", stdin=as_list(made))
    return names


@pytest.fixture(scope="module")
def installed(kubectl: Kubectl, places: dict[str, str]) -> list[Obj]:
    """Everything but the CRDs, applied as rendered."""
    values = {"scope": {"namespaces": [places[WATCHED]]}, "crds": {"enabled": False}, "rbac": {"aggregateRoles": False}}
    found = objects(yaml.safe_dump(values), places["system"])
    kubectl("apply", "--server-side", "--validate=strict", "-f", "-", stdin=as_list(found))
    return found


def can(kubectl: Kubectl, places: dict[str, str], who: str, question: str) -> bool:
    """Ask the API server's own authoriser: ``VERB RESOURCE[.GROUP][/NAME] in PLACE``."""
    words, place = question.split(" in ")
    system = places["system"]
    review: dict[str, Any] = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{system}:tuneloop-{who}",
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{system}", "system:authenticated"],
            "resourceAttributes": attributes(words, places[place]),
        },
    }
    answer = kubectl("create", "-o", "json", "-f", "-", stdin=json.dumps(review))
    return bool(json.loads(answer)["status"]["allowed"])


def as_list(found: list[Obj]) -> str:
    """JSON of many objects: PyYAML writes the text 2e-4 in a way that Go reads as a number."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": found})


def attributes(words: str, namespace: str) -> dict[str, str]:
    verb, target = words.split(" ")
    resource, _, name = target.partition("/")
    plural, _, group = resource.partition(".")
    return {"namespace": namespace, "verb": verb, "resource": plural, "group": group, "name": name}


ALLOWED = [
    ("operator", "watch finetunejobs.tuneloop.dev in watched"),
    ("operator", "create jobs.batch in watched"),
    ("operator", "patch deployments.apps in watched"),
    ("operator", "create persistentvolumeclaims in watched"),
    ("operator", "create events in watched"),
    ("operator", "watch leases.coordination.k8s.io/tuneloop-operator in watched"),
    ("operator", "watch jobs.batch in system"),
    ("operator", "update leases.coordination.k8s.io/tuneloop-operator in system"),
    ("operator", "list endpointslices.discovery.k8s.io in system"),
    ("gateway", "watch modeldeployments.tuneloop.dev in watched"),
    ("gateway", "watch endpointslices.discovery.k8s.io in watched"),
]

REFUSED = [
    ("operator", "get secrets in watched"),
    ("operator", "list secrets in system"),
    ("operator", "delete persistentvolumeclaims in watched"),
    ("operator", "create pods in watched"),
    ("operator", "create jobs.batch in system"),
    ("operator", "list finetunejobs.tuneloop.dev in foreign"),
    ("operator", "create jobs.batch in foreign"),
    ("operator", "update leases.coordination.k8s.io/another in system"),
    ("operator", "list nodes in system"),
    ("gateway", "get secrets in watched"),
    ("gateway", "list pods in watched"),
    ("gateway", "list finetunejobs.tuneloop.dev in watched"),
    ("gateway", "patch modeldeployments.tuneloop.dev in watched"),
    ("gateway", "list modeldeployments.tuneloop.dev in foreign"),
]


@pytest.mark.parametrize(("who", "question"), ALLOWED)
def test_allowed(kubectl: Kubectl, places: dict[str, str], installed: list[Obj], who: str, question: str) -> None:
    assert can(kubectl, places, who, question)


@pytest.mark.parametrize(("who", "question"), REFUSED)
def test_refused(kubectl: Kubectl, places: dict[str, str], installed: list[Obj], who: str, question: str) -> None:
    assert not can(kubectl, places, who, question)


def test_every_pod_is_admitted_under_restricted(kubectl: Kubectl, installed: list[Obj]) -> None:
    """Admission looks at pods, not at Deployments: each template is created as a pod, without keeping it."""
    deployments = of_kind(installed, "Deployment")
    assert len(deployments) == 2
    for deployment in deployments:
        template = deployment["spec"]["template"]
        metadata = {
            "name": "probe",
            "namespace": deployment["metadata"]["namespace"],
            "labels": template["metadata"]["labels"],
        }
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))


def test_crds_and_aggregated_roles_are_taken(kubectl: Kubectl, places: dict[str, str]) -> None:
    found = of_kind(objects(namespace=places["system"]), "CustomResourceDefinition", "ClusterRole")
    assert len(found) == 4
    kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-", stdin=as_list(found))
