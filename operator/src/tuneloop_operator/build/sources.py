"""Volumes that a URI needs: the claim of ``pvc://``, the Secret's fixed keys.

Never reads a Secret and never mounts a whole one.
"""

from typing import Any

from tuneloop_core.api.tracking import Tracking

Obj = dict[str, Any]
Volumes = list[tuple[Obj, Obj]]

SCHEME_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "hf": (("token",), ()),
    "https": (("token",), ()),
    "oci": (("token",), ("username",)),
    "s3": (("accessKeyId", "secretAccessKey"), ("sessionToken",)),
}
"""Scheme: (keys that must be in the Secret, keys that may be)."""
TRACKING_KEYS = ("token", "username", "password")


def scheme(uri: str) -> str:
    """``hf`` of ``hf://org/name``."""
    return uri.partition("://")[0]


def claim_of(uri: str) -> str:
    """``data`` of ``pvc://data/path``; empty for another scheme."""
    return uri.removeprefix("pvc://").partition("/")[0] if scheme(uri) == "pvc" else ""


def claim_path(purpose: str) -> str:
    """Where the claim of a pvc:// source is mounted."""
    return f"/claims/{purpose}"


def source_volumes(purpose: str, uri: str, secret: str, *, read_only: bool = True) -> Volumes:
    """(volume, mount) pairs for a source or target named ``model``, ``dataset``, ``validation`` or ``output``."""
    found: Volumes = []
    claim = claim_of(uri)
    if claim:
        volume = {"name": f"claim-{purpose}", "persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}}
        found.append((volume, _mount(f"claim-{purpose}", claim_path(purpose), read_only=read_only)))
    if secret and not claim:
        volume = {"name": f"secret-{purpose}", "projected": {"defaultMode": 0o440, "sources": _keys(uri, secret)}}
        found.append((volume, _mount(f"secret-{purpose}", f"/secrets/{purpose}", read_only=True)))
    return found


def tracking_volumes(tracking: Tracking | None) -> Volumes:
    """The tracker's Secret; which of its keys there are is its owner's choice."""
    secret = tracking.mlflow.credentials_secret if tracking else ""
    if not secret:
        return []
    keys = [{"secret": {"name": secret, "optional": True, "items": [_item(key)]}} for key in TRACKING_KEYS]
    volume = {"name": "secret-tracking", "projected": {"defaultMode": 0o440, "sources": keys}}
    return [(volume, _mount("secret-tracking", "/secrets/tracking", read_only=True))]


def _mount(name: str, path: str, *, read_only: bool) -> Obj:
    return {"name": name, "mountPath": path, "readOnly": read_only}


def _keys(uri: str, secret: str) -> list[Obj]:
    required, optional = SCHEME_KEYS[scheme(uri)]
    sources = [{"secret": {"name": secret, "items": [_item(key) for key in required]}}]
    return sources + [{"secret": {"name": secret, "optional": True, "items": [_item(key)]}} for key in optional]


def _item(key: str) -> Obj:
    return {"key": key, "path": key}
