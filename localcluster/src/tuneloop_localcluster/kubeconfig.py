"""kubeconfig files with everything inline, so that they work wherever they are copied."""

import base64
from pathlib import Path

import yaml

from tuneloop_localcluster.pki import Pair


def render(server: str, authority: bytes, certificate: bytes, key: bytes, *, name: str) -> str:
    """A kubeconfig with one cluster, one user and one context, all called `name`, all PEM data inline."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": _b64(authority)}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "users": [{"name": name, "user": {"client-certificate-data": _b64(certificate), "client-key-data": _b64(key)}}],
    }
    return yaml.safe_dump(config, sort_keys=False)


def write(path: Path, server: str, authority: Pair, client: Pair, *, name: str) -> None:
    """Write the kubeconfig of one client, readable by its owner only."""
    pem = (authority.certificate.read_bytes(), client.certificate.read_bytes(), client.key.read_bytes())
    path.touch(mode=0o600)
    path.write_text(render(server, *pem, name=name))


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
