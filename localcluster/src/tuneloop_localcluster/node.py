"""Making the started cluster usable: its first objects, and the wait until pods can run."""

import http.client
import json

from tuneloop_localcluster import components, controlplane, nodeconfig, objects, programs, waiting
from tuneloop_localcluster.apiserver import ControlPlane
from tuneloop_localcluster.paths import Cache
from tuneloop_localcluster.shell import run


def apply_objects(cache: Cache) -> None:
    """Apply the objects that every cluster starts with."""
    items = {"apiVersion": "v1", "kind": "List", "items": objects.bootstrap()}
    kubectl = [str(programs.program(cache, "kubectl")), "--kubeconfig", str(cache.full.admin_kubeconfig)]
    run([*kubectl, "apply", "--server-side", "--force-conflicts", "-f", "-"], stdin=json.dumps(items))


def ready(plane: ControlPlane) -> bool:
    """Whether the node's condition Ready is True."""
    status, body = controlplane.get(plane, f"/api/v1/nodes/{nodeconfig.NODE_NAME}")
    return status == 200 and is_ready(json.loads(body))


def is_ready(node: dict[str, object]) -> bool:
    """Whether a Node object says that it is Ready."""
    status = node.get("status")
    conditions = status.get("conditions", []) if isinstance(status, dict) else []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def dns_ready() -> bool:
    """Whether CoreDNS has read the cluster's Services."""
    connection = http.client.HTTPConnection(nodeconfig.NODE_ADDRESS, nodeconfig.DNS_READY_PORT, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def wait(cache: Cache) -> None:
    """Wait until the node is Ready, DNS answers and a pod can be made in namespace default."""
    plane = components.control_plane(cache)
    waiting.until("node Ready", lambda: ready(plane), daemon=controlplane.daemon(plane, "kubelet"))
    waiting.until("DNS", dns_ready, daemon=controlplane.daemon(plane, "coredns"))
    account = "/api/v1/namespaces/default/serviceaccounts/default"
    waiting.until(
        "service account default/default",
        lambda: controlplane.get(plane, account)[0] == 200,
        daemon=controlplane.daemon(plane, "kube-controller-manager"),
    )
