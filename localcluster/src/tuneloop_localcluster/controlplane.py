"""Starting etcd and kube-apiserver: certificates, files, processes, and the wait until they answer."""

import http.client
import ipaddress
import shutil
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from tuneloop_localcluster import kubeconfig, pki, programs, waiting
from tuneloop_localcluster.apiserver import AUDIT_POLICY, ControlPlane, apiserver_command, etcd_command
from tuneloop_localcluster.paths import Cache
from tuneloop_localcluster.pki import Authority
from tuneloop_localcluster.processes import Daemon

Launcher = Callable[[Daemon, Sequence[str | Path]], None]

ETCD = "etcd"
APISERVER = "kube-apiserver"


def daemon(plane: ControlPlane, name: str) -> Daemon:
    """A process of this variant by its name."""
    return Daemon(name, plane.state.pids, plane.state.logs)


def prepare(plane: ControlPlane) -> Authority:
    """Make a fresh state folder: certificates, audit policy, admin kubeconfig. Returns the clients' authority."""
    state = plane.state
    for folder in (state.pids, state.logs, state.config):
        folder.mkdir(parents=True, exist_ok=True)
    state.root.chmod(0o755)
    authority = _certificates(plane)
    (state.config / "audit-policy.yaml").write_text(yaml.safe_dump(AUDIT_POLICY))
    admin = authority.issue("admin", "admin", ["system:masters"])
    kubeconfig.write(state.admin_kubeconfig, plane.server, authority.files, admin, name=f"tuneloop-{state.root.name}")
    return authority


def _certificates(plane: ControlPlane) -> Authority:
    folder = plane.state.pki
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    authority = Authority(folder, "ca")
    first_service = str(next(ipaddress.ip_network(plane.service_range).hosts()))
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    authority.issue(APISERVER, APISERVER, sans=[*names, "localhost", "127.0.0.1", plane.address, first_service])
    authority.issue("kubelet-client", "kube-apiserver-kubelet-client", ["system:masters"])
    etcd = Authority(folder, "etcd-ca")
    etcd.issue("etcd", "etcd", sans=["localhost", "127.0.0.1"])
    etcd.issue("etcd-client", APISERVER)
    Authority(folder, "front-proxy-ca").issue("front-proxy-client", "front-proxy-client")
    pki.write_signing_key(folder / "service-accounts.key")
    return authority


def start(cache: Cache, plane: ControlPlane, launch: Launcher) -> None:
    """Start both and wait until the API server says that it is ready. Processes that run already are left alone."""
    etcd = daemon(plane, ETCD)
    launch(etcd, etcd_command(plane, shutil.which("etcd") or "etcd"))
    # kube-apiserver gives up after 20 s without etcd, and its last words would not say why etcd is not there.
    waiting.until("etcd to listen", lambda: etcd.listens(plane.etcd_port), daemon=etcd)
    launch(daemon(plane, APISERVER), apiserver_command(plane, programs.program(cache, APISERVER)))
    wait(plane)


def wait(plane: ControlPlane) -> None:
    """Wait until the API server is ready."""
    waiting.until("the API server to be ready", lambda: ready(plane), daemon=daemon(plane, APISERVER))


def ready(plane: ControlPlane) -> bool:
    """Whether /readyz answers 200 to the admin."""
    return get(plane, "/readyz")[0] == 200


def get(plane: ControlPlane, path: str) -> tuple[int, bytes]:
    """HTTP status and body of one GET as admin; status 0 if nobody answers."""
    admin = pki.pair(plane.state.pki, "admin")
    try:
        context = ssl.create_default_context(cafile=str(pki.pair(plane.state.pki, "ca").certificate))
        context.load_cert_chain(admin.certificate, admin.key)
        connection = http.client.HTTPSConnection(plane.address, plane.port, context=context, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()
    except (OSError, http.client.HTTPException):
        return 0, b""


def running(plane: ControlPlane, names: Sequence[str]) -> bool:
    """Whether all these processes run."""
    return all(daemon(plane, name).pid is not None for name in names)


def alive(plane: ControlPlane, names: Sequence[str]) -> bool:
    """Whether all these processes run and the API server answers."""
    return running(plane, names) and ready(plane)


def stop(plane: ControlPlane, names: Sequence[str]) -> None:
    """End these processes in this order: what writes to another ends before it."""
    for name in names:
        daemon(plane, name).stop()
