"""Who may use which model: keys are 256-bit random, the resource holds their SHA-256, the client sends the key.

Pure. Hashes are compared in constant time and all of them are compared, so that time tells nothing. Never logs or
returns a key.
"""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

HASH_PREFIX: Final = "sha256:"
BEARER: Final = b"bearer "


@dataclass(frozen=True)
class Key:
    """One entry of ``spec.access.keys``; empty ``models`` is all models of the deployment."""

    name: str
    digest: bytes  # 32 bytes
    models: frozenset[str] = frozenset()

    def opens(self, model: str) -> bool:
        """Whether this key may use the model or adapter of that name."""
        return not self.models or model in self.models


def digest_of_hash(text: str) -> bytes:
    """The 32 bytes behind ``sha256:<64 hex digits>``.

    Raises:
        ValueError: it is not such a hash; the text is not repeated.
    """
    if not text.startswith(HASH_PREFIX):
        raise ValueError("a key's hash must be 'sha256:' and 64 hexadecimal digits")
    digest = bytes.fromhex(text[len(HASH_PREFIX) :])
    if len(digest) != hashlib.sha256().digest_size:
        raise ValueError("a key's hash must be 'sha256:' and 64 hexadecimal digits")
    return digest


def digest_of_header(authorization: bytes | None) -> bytes | None:
    """SHA-256 of the key in an ``Authorization: Bearer`` header, or None where there is none."""
    if not authorization or authorization[: len(BEARER)].lower() != BEARER:
        return None
    key = authorization[len(BEARER) :].strip()
    return hashlib.sha256(key).digest() if key else None


def find(keys: Iterable[Key], digest: bytes) -> Key | None:
    """The key with that digest; looks at every key, whichever matches."""
    found: Key | None = None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found
