"""Where the API server is and how we prove who we are: a pod's service account, or a kubeconfig (tests, tools).

Token files are read again when they change, for the kubelet rotates them. Never logs a token.
"""

import base64
import os
import ssl
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_REREAD_SECONDS = 30.0


class TokenFile:
    """A token in a file, read again at most every 30 seconds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._token = ""
        self._read_at = float("-inf")

    def value(self) -> str:
        """The token as it is now; OSError when the file is not there."""
        now = time.monotonic()
        if now - self._read_at >= TOKEN_REREAD_SECONDS:
            self._token = self._path.read_text().strip()
            self._read_at = now
        return self._token

    def forget(self) -> None:
        """Read the file at the next use: the server refused what we have."""
        self._read_at = float("-inf")


class FixedToken(TokenFile):
    """A token given in a kubeconfig."""

    def __init__(self, token: str) -> None:
        super().__init__(Path())
        self._fixed = token

    def value(self) -> str:
        """The token; empty where client certificates speak for us."""
        return self._fixed


@dataclass(frozen=True)
class Credentials:
    """Server URL without a trailing slash, TLS context, and the token's source."""

    server: str
    tls: ssl.SSLContext | None
    token: TokenFile


def load_credentials() -> Credentials:
    """Credentials of this process: ``KUBECONFIG`` where set, else the pod's service account, else ~/.kube/config."""
    explicit = os.environ.get("KUBECONFIG", "")
    if explicit:
        return from_kubeconfig(Path(explicit))
    if (SERVICE_ACCOUNT / "token").exists():
        return from_service_account(SERVICE_ACCOUNT)
    return from_kubeconfig(Path("~/.kube/config").expanduser())


def from_service_account(folder: Path) -> Credentials:
    """The service account that the kubelet mounts; KeyError outside a pod."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    host = f"[{host}]" if ":" in host else host
    tls = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    return Credentials(server=f"https://{host}:{port}", tls=tls, token=TokenFile(folder / "token"))


def from_kubeconfig(path: Path) -> Credentials:
    """The current context of a kubeconfig; ValueError says what it lacks. Exec plugins are not supported."""
    config = yaml.safe_load(path.read_text())
    context = _named(config, "contexts", config.get("current-context", ""), path)["context"]
    cluster = _named(config, "clusters", context["cluster"], path)["cluster"]
    user = _named(config, "users", context["user"], path)["user"]
    server = cluster["server"].rstrip("/")
    tls = _tls(cluster, user) if server.startswith("https:") else None
    return Credentials(server=server, tls=tls, token=_token(user))


def _named(config: dict[str, Any], section: str, name: str, path: Path) -> dict[str, Any]:
    for entry in config.get(section, []):
        if entry["name"] == name:
            return dict(entry)
    raise ValueError(f"{path}: no entry {name!r} under {section}")


def _token(user: dict[str, Any]) -> TokenFile:
    if "tokenFile" in user:
        return TokenFile(Path(user["tokenFile"]))
    return FixedToken(user.get("token", ""))


def _tls(cluster: dict[str, Any], user: dict[str, Any]) -> ssl.SSLContext:
    ca_data = cluster.get("certificate-authority-data")
    cadata = base64.b64decode(ca_data).decode() if ca_data else None
    tls = ssl.create_default_context(cafile=cluster.get("certificate-authority"), cadata=cadata)
    if cluster.get("insecure-skip-tls-verify"):
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    certificate, key = _pem(user, "client-certificate"), _pem(user, "client-key")
    if certificate and key:
        _load_pair(tls, certificate + b"\n" + key)
    return tls


def _pem(user: dict[str, Any], field: str) -> bytes:
    data = user.get(f"{field}-data")
    if data:
        return base64.b64decode(data)
    return Path(user[field]).read_bytes() if user.get(field) else b""


def _load_pair(tls: ssl.SSLContext, pair: bytes) -> None:
    """``ssl`` loads key pairs from files only; this one is readable by us alone and gone at once."""
    with tempfile.NamedTemporaryFile(prefix="tuneloop-", suffix=".pem") as file:
        file.write(pair)
        file.flush()
        tls.load_cert_chain(file.name)
