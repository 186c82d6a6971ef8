"""How to reach the API server: from inside a pod, or by a kubeconfig for tests and benchmarks.

Gives a base address, a TLS context and the headers of a request; the token of a pod is read again, since the kubelet
replaces it. Never logs a token.
"""

import base64
import os
import socket
import ssl
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_SECONDS: Final = 60.0
KEEPALIVE: Final = {
    socket.TCP_KEEPIDLE: 15,  # seconds of silence before the kernel asks whether the other side is there
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 30_000,  # milliseconds that what was sent may stay without an answer
}
"""A node that is gone sends no end of its connections: the kernel makes an error of its silence in half a minute."""


@dataclass
class Access:
    """One API server."""

    base_url: str
    tls: ssl.SSLContext | None = None
    token: str = ""
    token_path: Path | None = None
    _read: float = -TOKEN_SECONDS

    def headers(self) -> dict[str, str]:
        """Headers of the next request."""
        if self.token_path is not None and time.monotonic() - self._read >= TOKEN_SECONDS:
            self.token, self._read = self.token_path.read_text().strip(), time.monotonic()
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def connector() -> aiohttp.TCPConnector:
    """For a session to the API server: as many connections as it has watches, and none that is half open for long."""
    return aiohttp.TCPConnector(limit=0, socket_factory=_open_socket)


def _open_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def find_access(env: Mapping[str, str] = os.environ) -> Access:
    """Access by ``KUBECONFIG`` if that is set, else from inside the pod.

    Raises:
        OSError, ValueError: neither works; the message says what is missing.
    """
    if env.get("KUBECONFIG"):
        return from_kubeconfig(Path(env["KUBECONFIG"]))
    host, port = env.get("KUBERNETES_SERVICE_HOST"), env.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise ValueError("not in a pod (KUBERNETES_SERVICE_HOST is not set) and KUBECONFIG is not set")
    tls = ssl.create_default_context(cafile=str(SERVICE_ACCOUNT / "ca.crt"))
    return Access(f"https://{f'[{host}]' if ':' in host else host}:{port}", tls, token_path=SERVICE_ACCOUNT / "token")


def from_kubeconfig(path: Path) -> Access:
    """Access by the current context of a kubeconfig: certificates or a token, as data or as files.

    Raises:
        OSError, ValueError: the file is missing or lacks what its current context names.
    """
    config = yaml.safe_load(path.read_text())
    context = _named(config, "contexts", config.get("current-context", ""))["context"]
    cluster = _named(config, "clusters", context["cluster"])["cluster"]
    user = _named(config, "users", context["user"]).get("user") or {}
    url = str(cluster["server"]).rstrip("/")
    tls = _tls(path.parent, cluster, user) if url.startswith("https://") else None
    return Access(url, tls, token=user.get("token", ""))


def _named(config: Mapping[str, Any], section: str, name: str) -> dict[str, Any]:
    for each in config.get(section) or ():
        if each["name"] == name:
            return dict(each)
    raise ValueError(f"the kubeconfig has no entry '{name}' in '{section}'")


def _tls(folder: Path, cluster: Mapping[str, Any], user: Mapping[str, Any]) -> ssl.SSLContext:
    authority = _pem(folder, cluster, "certificate-authority")
    context = ssl.create_default_context(cadata=authority.decode() if authority else None)
    certificate, key = _pem(folder, user, "client-certificate"), _pem(folder, user, "client-key")
    if certificate and key:
        _load_pair(context, certificate + b"\n" + key)
    return context


def _pem(folder: Path, block: Mapping[str, Any], name: str) -> bytes:
    if block.get(f"{name}-data"):
        return base64.b64decode(block[f"{name}-data"])
    return (folder / block[name]).read_bytes() if block.get(name) else b""


def _load_pair(context: ssl.SSLContext, pair: bytes) -> None:
    """OpenSSL takes files only; this one is readable by us alone and gone at once."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(pair)
        file.flush()
        context.load_cert_chain(file.name)
