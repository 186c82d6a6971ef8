"""The operator's own tokens towards model servers, one a namespace, asked for before the last one runs out.

Kept in memory only; never logged and never handed to anybody but a server pod of their namespace.
"""

import asyncio
import logging
import time
from collections import defaultdict

from tuneloop_core.servertokens import read_token
from tuneloop_operator import metrics
from tuneloop_operator.kube.client import Client
from tuneloop_operator.kube.errors import ApiError

logger = logging.getLogger(__name__)

RETRY_SECONDS = 15.0


class ServerTokens:
    """Tokens of one service account; ``namespace`` is where the account is."""

    def __init__(self, client: Client, namespace: str, account: str) -> None:
        self._client, self._namespace, self._account = client, namespace, account
        self._values: dict[str, str] = {}
        self._due: dict[str, float] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def value(self, namespace: str) -> str:
        """The token towards servers of a namespace; the old one where no new one can be had, or an empty string."""
        async with self._locks[namespace]:
            if time.monotonic() >= self._due.get(namespace, float("-inf")):
                await self._renew(namespace)
        return self._values.get(namespace, "")

    async def _renew(self, namespace: str) -> None:
        wait = RETRY_SECONDS
        try:
            token = read_token(await self._client.request_token(self._namespace, self._account, namespace))
            self._values[namespace], wait = token.value, token.refresh_after
        except (ApiError, KeyError, ValueError) as error:
            metrics.ERRORS.labels("server-token").inc()
            logger.warning("no new token for servers of namespace %s: %s", namespace, error)
        self._due[namespace] = time.monotonic() + wait
