"""The cluster's public keys for service-account tokens, which servers check tokens against offline.

Never reads a private key.
"""

import logging
import time
from typing import Any

from tuneloop_operator.kube.client import Client

logger = logging.getLogger(__name__)

REREAD_SECONDS = 3600.0


class Issuer:
    """Issuer and JWKS as the API server publishes them, read again once an hour, for keys rotate."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._read_at = float("-inf")
        self._value: tuple[str, dict[str, Any]] = ("", {})

    async def value(self) -> tuple[str, dict[str, Any]]:
        """(issuer, JWKS); ApiError where the role lacks the non-resource URLs."""
        now = time.monotonic()
        if now - self._read_at >= REREAD_SECONDS:
            discovery = await self._client.get_path("/.well-known/openid-configuration")
            keys = await self._client.get_path("/openid/v1/jwks")
            self._value, self._read_at = (str(discovery["issuer"]), dict(keys)), now
        return self._value
