"""What a new cluster holds from the start: DNS Service, default StorageClass, rights of two components. Pure."""

from typing import Any

from tuneloop_localcluster import nodeconfig

Object = dict[str, Any]

_RBAC = "rbac.authorization.k8s.io"
_READ = ["get", "list", "watch"]


def bootstrap() -> list[Object]:
    """All of them, ready to be applied."""
    return [storage_class(), *dns_service(), *_rights("coredns", _DNS_RULES), *_rights("provisioner", _STORAGE_RULES)]


def storage_class() -> Object:
    """The default class: a `local` volume on the node of the first pod that uses the claim, deleted with it."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "tuneloop.dev/local",
        "volumeBindingMode": "WaitForFirstConsumer",
        "reclaimPolicy": "Delete",
    }


def dns_service() -> list[Object]:
    """Service kube-dns without a selector: CoreDNS is a process of the node, not a pod."""
    metadata = {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}}
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"clusterIP": nodeconfig.DNS_ADDRESS, "ports": ports},
    }
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**metadata, "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": [{"addresses": [nodeconfig.NODE_ADDRESS], "conditions": {"ready": True}}],
    }
    return [service, endpoints]


_DNS_RULES = [
    {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
]
_STORAGE_RULES = [
    {"apiGroups": [""], "resources": ["persistentvolumes"], "verbs": [*_READ, "create", "update", "patch", "delete"]},
    {"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": [*_READ, "update"]},
    {"apiGroups": ["storage.k8s.io"], "resources": ["storageclasses"], "verbs": _READ},
    {"apiGroups": [""], "resources": ["nodes"], "verbs": _READ},
    {"apiGroups": [""], "resources": ["events"], "verbs": [*_READ, "create", "update", "patch"]},
]


def _rights(component: str, rules: list[Object]) -> list[Object]:
    """A ClusterRole and its binding for the user of one component."""
    name = f"tuneloop:{component}"
    return [
        {"apiVersion": f"{_RBAC}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules},
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": name},
            "subjects": [{"apiGroup": _RBAC, "kind": "User", "name": name}],
        },
    ]
