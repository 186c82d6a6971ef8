"""HTTP sessions to the API server: one for us, one of the same make for kopf's watches.

Never retries and never decides.
"""

import aiohttp

from tuneloop_operator.kube.credentials import Credentials

CONNECT_TIMEOUT_SECONDS = 10.0


def open_session(credentials: Credentials) -> aiohttp.ClientSession:
    """A session that adds the token of the moment to each request, so that a rotated token needs no new session."""
    connector = aiohttp.TCPConnector(limit=0, ssl=credentials.tls or True, keepalive_timeout=60)
    return aiohttp.ClientSession(
        connector=connector,
        headers={"User-Agent": "tuneloop-operator"},
        middlewares=(_authorize(credentials),),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_SECONDS),
    )


def _authorize(credentials: Credentials) -> aiohttp.ClientMiddlewareType:
    async def authorize(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        token = credentials.token.value()
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        response = await handler(request)
        if response.status == 401:
            credentials.token.forget()
        return response

    return authorize
