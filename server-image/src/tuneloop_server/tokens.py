"""Who is calling: service-account tokens checked offline against guard.json.

The file is read anew when it changes (the kubelet swaps a symlink, so time, inode or size differ). Until there is a
good one, nobody is known. Tokens are never logged, stored or answered with.
"""

import logging
from pathlib import Path
from typing import Any, Final

import jwt
from pydantic import ValidationError

from tuneloop_core.serving import GuardConfig

log = logging.getLogger(__name__)

ALGORITHMS: Final = ("RS256", "ES256")
LEEWAY_SECONDS: Final = 10  # clocks of two nodes differ by a little
MAX_TOKEN_BYTES: Final = 16 * 1024


class Keys:
    """One guard.json, parsed: public keys by id, and whose tokens open what."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self._keys = {key.key_id: key for key in jwt.PyJWKSet.from_dict(config.jwks).keys}

    def subject(self, token: str) -> str | None:
        """The token's subject, or None for whatever is wrong with it."""
        if len(token) > MAX_TOKEN_BYTES:
            return None
        try:
            return str(self._claims(token)["sub"])
        except (jwt.PyJWTError, ValueError):
            return None

    def _claims(self, token: str) -> dict[str, Any]:
        header = jwt.get_unverified_header(token)
        key = self._keys.get(header.get("kid"))
        if key is None or key.algorithm_name not in ALGORITHMS:
            raise jwt.InvalidKeyError("no such key")
        return jwt.decode(
            token,
            key.key,
            # The key's algorithm, never the token's: an RSA key must not be taken for an HMAC secret.
            algorithms=[key.algorithm_name],
            issuer=self.config.issuer,
            audience=self.config.audience,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "sub", "iss", "aud"]},
        )


class KeyFile:
    """guard.json as it is now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._keys: Keys | None = None

    def current(self) -> Keys | None:
        """The newest good content; a broken file keeps the one before, and says so once."""
        try:
            status = self._path.stat()
        except OSError:
            return self._keys
        stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
        if stamp != self._stamp:
            self._stamp = stamp
            self._keys = self._read() or self._keys
        return self._keys

    def _read(self) -> Keys | None:
        try:
            return Keys(GuardConfig.model_validate_json(self._path.read_bytes()))
        except ValidationError as error:
            reason = "; ".join(f"{detail['loc']}: {detail['msg']}" for detail in error.errors(include_input=False))
        except (OSError, jwt.PyJWTError) as error:
            reason = str(error)
        log.error("%s is not usable, so the one before stays in force: %s", self._path, reason)
        return None
