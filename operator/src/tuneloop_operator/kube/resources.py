"""The kinds that the operator reads and writes, and their paths on the API server. Never does I/O."""

from dataclasses import dataclass
from typing import Any

from tuneloop_core.constants import (
    FINETUNEJOB_KIND,
    FINETUNEJOB_PLURAL,
    GROUP,
    MODELDEPLOYMENT_KIND,
    MODELDEPLOYMENT_PLURAL,
    VERSION,
)

Obj = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """One kind; ``group`` is empty for the core group."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """As written in a manifest."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """Below the server's URL; an empty namespace means all namespaces."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root]
        parts += [f"namespaces/{namespace}"] if namespace else []
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)


FINETUNEJOBS = Resource(GROUP, VERSION, FINETUNEJOB_PLURAL, FINETUNEJOB_KIND)
MODELDEPLOYMENTS = Resource(GROUP, VERSION, MODELDEPLOYMENT_PLURAL, MODELDEPLOYMENT_KIND)
JOBS = Resource("batch", "v1", "jobs", "Job")
PODS = Resource("", "v1", "pods", "Pod")
CLAIMS = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
CONFIGMAPS = Resource("", "v1", "configmaps", "ConfigMap")
SERVICES = Resource("", "v1", "services", "Service")
EVENTS = Resource("", "v1", "events", "Event")
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
BUDGETS = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
ENDPOINT_SLICES = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
NODES = Resource("", "v1", "nodes", "Node")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")

BY_KIND: dict[str, Resource] = {
    resource.kind: resource
    for resource in (
        FINETUNEJOBS,
        MODELDEPLOYMENTS,
        JOBS,
        PODS,
        CLAIMS,
        CONFIGMAPS,
        SERVICES,
        EVENTS,
        DEPLOYMENTS,
        BUDGETS,
        POLICIES,
        ENDPOINT_SLICES,
        LEASES,
    )
}


def resource_of(obj: Obj) -> Resource:
    """The resource of a manifest that we built; KeyError for a kind that the operator never makes."""
    return BY_KIND[obj["kind"]]
