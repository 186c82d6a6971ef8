"""The API server as its administrator, over plain HTTP: what tests of the operator look at and play with."""

import base64
import json
import ssl
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import yaml

Obj = dict[str, Any]

GENEROUS = 90.0  # seconds; a limit ends a hang, it never measures

PATHS = {
    "FineTuneJob": ("/apis/tuneloop.dev/v1alpha1", "finetunejobs"),
    "ModelDeployment": ("/apis/tuneloop.dev/v1alpha1", "modeldeployments"),
    "Job": ("/apis/batch/v1", "jobs"),
    "Node": ("/api/v1", "nodes"),
    "Pod": ("/api/v1", "pods"),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "PersistentVolumeClaim": ("/api/v1", "persistentvolumeclaims"),
    "ConfigMap": ("/api/v1", "configmaps"),
    "Service": ("/api/v1", "services"),
    "ServiceAccount": ("/api/v1", "serviceaccounts"),
    "Role": ("/apis/rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": ("/apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    "Event": ("/api/v1", "events"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets"),
    "EndpointSlice": ("/apis/discovery.k8s.io/v1", "endpointslices"),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases"),
}


class Api:
    """get, list, create, patch and delete as the admin of a kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._http = httpx.Client(base_url=cluster["server"], verify=tls_of(cluster, user), timeout=30.0)

    def close(self) -> None:
        self._http.close()

    def get(self, kind: str, namespace: str, name: str) -> Obj | None:
        answer = self._http.get(self._path(kind, namespace, name))
        return None if answer.status_code == 404 else self._checked(answer)

    def must(self, kind: str, namespace: str, name: str) -> Obj:
        found = self.get(kind, namespace, name)
        assert found is not None, f"{kind} {namespace}/{name} is not there"
        return found

    def list(self, kind: str, namespace: str, labels: str = "") -> list[Obj]:
        answer = self._checked(self._http.get(self._path(kind, namespace), params={"labelSelector": labels}))
        return [item | {"kind": kind} for item in answer["items"]]

    def create(self, obj: Obj) -> Obj:
        namespace = obj["metadata"].get("namespace", "")
        path = "/api/v1/namespaces" if obj["kind"] == "Namespace" else self._path(obj["kind"], namespace)
        return self._checked(self._http.post(path, json=obj))

    def patch(self, kind: str, namespace: str, name: str, body: Obj, subresource: str = "") -> Obj:
        path = self._path(kind, namespace, name) + (f"/{subresource}" if subresource else "")
        headers = {"Content-Type": "application/merge-patch+json"}
        return self._checked(self._http.patch(path, content=json.dumps(body), headers=headers))

    def delete(self, kind: str, namespace: str, name: str, grace: int | None = 0) -> None:
        """At once, or with so many seconds of grace; with None, as many as the object itself asks for."""
        body: Obj = {"propagationPolicy": "Background"} | ({} if grace is None else {"gracePeriodSeconds": grace})
        answer = self._http.request("DELETE", self._path(kind, namespace, name), json=body)
        if answer.status_code != 404:
            self._checked(answer)

    def _path(self, kind: str, namespace: str, name: str = "") -> str:
        root, plural = PATHS[kind]
        scope = f"/namespaces/{namespace}" if namespace else ""
        return f"{root}{scope}/{plural}" + (f"/{name}" if name else "")

    def _checked(self, answer: httpx.Response) -> Obj:
        assert answer.status_code < 400, f"{answer.request.method} {answer.request.url}: {answer.text}"
        return answer.json()


def wait_for(
    what: str, probe: Callable[[], Any], timeout: float = GENEROUS, show: Callable[[], Any] | None = None
) -> Any:
    """Poll until the probe is truthy; a failure says what was waited for and what was there instead."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found = probe()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout:.0f} s in vain for {what}" + (f"; there is: {show()}" if show else ""))


def jwt_body(token: str) -> Obj:
    """The claims of a token, unchecked; also as it stands in an Authorization header."""
    body = token.removeprefix("Bearer ").split(".")[1]
    return dict(json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))))


def tls_of(cluster: Obj, user: Obj) -> ssl.SSLContext:
    """What a kubeconfig says of trust and of the client's certificate."""
    tls = ssl.create_default_context(
        cafile=cluster.get("certificate-authority"), cadata=_decoded(cluster.get("certificate-authority-data"))
    )
    certificate, key = user.get("client-certificate"), user.get("client-key")
    with tempfile.TemporaryDirectory() as folder:
        if "client-certificate-data" in user:
            certificate, key = str(Path(folder) / "crt"), str(Path(folder) / "key")
            Path(certificate).write_text(_decoded(user["client-certificate-data"]) or "")
            Path(key).write_text(_decoded(user["client-key-data"]) or "")
        if certificate:
            tls.load_cert_chain(certificate, key)
    return tls


def _decoded(data: str | None) -> str | None:
    return base64.b64decode(data).decode() if data else None
