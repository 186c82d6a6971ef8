"""Raw JSON to and from the API server: get, list, create, apply, patch, delete. Never caches and never decides.

Every write passes the fence (the Lease) first and is counted by verb and kind. A 429 or a retriable 5xx is tried
again with the server's own Retry-After; everything else is the caller's matter, since its queue tries again anyway.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import aiohttp
import orjson

from tuneloop_core.constants import FIELD_MANAGER
from tuneloop_core.servertokens import token_path, token_request
from tuneloop_operator import metrics
from tuneloop_operator.kube.credentials import Credentials
from tuneloop_operator.kube.errors import ApiError, ApiUnavailableError, ConflictError, NotFoundError, error_of
from tuneloop_operator.kube.resources import LEASES, PODS, Obj, Resource
from tuneloop_operator.kube.session import open_session
from tuneloop_operator.names import owner_uids

REQUEST_TIMEOUT_SECONDS = 30.0
ATTEMPTS = 4
MAX_RETRY_AFTER_SECONDS = 10.0
RETRIABLE = frozenset({429, 503, 504})

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"  # JSON is YAML


class ForeignOwnerError(Exception):
    """An object of the name we need exists, but it is not ours: it is never adopted nor changed."""

    expected = True

    def __init__(self, resource: Resource, namespace: str, name: str) -> None:
        super().__init__(
            f"{resource.kind} {namespace}/{name} exists already and belongs to somebody else; delete or rename it"
        )


class Client:
    """One session to one API server."""

    def __init__(self, credentials: Credentials, fence: Callable[[], None] = lambda: None) -> None:
        self.credentials = credentials
        self.fence = fence
        self._session = open_session(credentials)

    async def close(self) -> None:
        """Close the session; no request may follow."""
        await self._session.close()

    async def get(self, resource: Resource, namespace: str, name: str) -> Obj:
        """One object; NotFoundError when it is not there."""
        metrics.API_READS.labels(resource.kind).inc()
        return dict(await self._request("GET", resource.path(namespace, name)))

    async def find(self, resource: Resource, namespace: str, name: str) -> Obj | None:
        """The same, or None where there is none."""
        try:
            return await self.get(resource, namespace, name)
        except NotFoundError:
            return None

    async def get_path(self, path: str) -> Any:
        """Any JSON document of the API server, such as ``/openid/v1/jwks``."""
        return await self._request("GET", path)

    async def request_token(self, account_namespace: str, account: str, namespace: str) -> Obj:
        """Ask for a token of a service account towards the servers of ``namespace``; nothing is written for it."""
        path, body = token_path(account_namespace, account), token_request(namespace)
        return dict(await self._request("POST", path, body=body, content_type=JSON))

    async def list(
        self, resource: Resource, namespace: str, *, labels: str = "", fields: str = "", limit: int = 0
    ) -> list[Obj]:
        """Objects by label and field selector; one page of ``limit`` where given."""
        metrics.API_READS.labels(resource.kind).inc()
        query = {"labelSelector": labels, "fieldSelector": fields, "limit": str(limit) if limit else ""}
        answer = await self._request("GET", resource.path(namespace), query={k: v for k, v in query.items() if v})
        return list(answer.get("items", []))

    async def create(self, resource: Resource, body: Obj) -> Obj:
        """Create; ConflictError when the name is taken."""
        path = resource.path(body["metadata"]["namespace"])
        return await self._write("create", resource, "POST", path, body, JSON, {"fieldManager": FIELD_MANAGER})

    async def create_owned(self, resource: Resource, body: Obj) -> Obj:
        """Create; where the name is taken, the object there if its controller is the same owner as ours.

        Raises ForeignOwnerError otherwise.
        """
        try:
            return await self.create(resource, body)
        except ConflictError:
            metadata = body["metadata"]
            found = await self.get(resource, metadata["namespace"], metadata["name"])
            if owner_uids(found) & owner_uids(body):
                return found
            raise ForeignOwnerError(resource, metadata["namespace"], metadata["name"]) from None

    async def apply(self, resource: Resource, body: Obj) -> Obj:
        """Server-side apply as field manager ``tuneloop``, forced: what we say, we own."""
        metadata = body["metadata"]
        path = resource.path(metadata["namespace"], metadata["name"])
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self._write("apply", resource, "PATCH", path, body, APPLY_PATCH, query)

    async def patch(self, resource: Resource, namespace: str, name: str, body: Obj, subresource: str = "") -> Obj:
        """Merge patch; a ``resourceVersion`` in it makes a stale write a ConflictError."""
        path = resource.path(namespace, name, subresource)
        verb = f"patch-{subresource}" if subresource else "patch"
        return await self._write(verb, resource, "PATCH", path, body, MERGE_PATCH, {"fieldManager": FIELD_MANAGER})

    async def replace(self, resource: Resource, body: Obj) -> Obj:
        """Replace; the body's ``resourceVersion`` makes a stale write a ConflictError."""
        metadata = body["metadata"]
        path = resource.path(metadata["namespace"], metadata["name"])
        return await self._write("update", resource, "PUT", path, body, JSON, {"fieldManager": FIELD_MANAGER})

    async def delete(
        self, resource: Resource, namespace: str, name: str, uid: str, *, foreground: bool = False
    ) -> None:
        """Delete this very object (UID precondition) and what it owns; gone already is fine.

        In the background, or with ``foreground`` first what it owns.
        """
        body = {"preconditions": {"uid": uid}, "propagationPolicy": "Foreground" if foreground else "Background"}
        await self._delete(resource, resource.path(namespace, name), body)

    async def shorten(self, namespace: str, pod: str, uid: str, seconds: int) -> None:
        """Give a pod that leaves fewer seconds in all, at least one; gone already is fine."""
        body = {"preconditions": {"uid": uid}, "gracePeriodSeconds": seconds}
        await self._delete(PODS, PODS.path(namespace, pod), body)

    async def _delete(self, resource: Resource, path: str, body: Obj) -> None:
        try:
            await self._write("delete", resource, "DELETE", path, body, JSON, {})
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def _write(  # noqa: PLR0913 - one request, spelled out
        self, verb: str, resource: Resource, method: str, path: str, body: Obj, content_type: str, query: dict[str, str]
    ) -> Obj:
        answer = await self._request(method, path, query=query, body=body, content_type=content_type, write=True)
        if resource is not LEASES:  # renewals go on for ever; the lease counts them itself
            metrics.API_WRITES.labels(resource.kind, verb).inc()
        return dict(answer)

    async def _request(  # noqa: PLR0913 - one request, spelled out
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Obj | None = None,
        content_type: str = "",
        write: bool = False,
    ) -> Any:
        url = f"{self.credentials.server}{path}" + (f"?{urlencode(query)}" if query else "")
        for attempt in range(1, ATTEMPTS + 1):
            if write:
                self.fence()
            try:
                return await self._once(method, url, body, content_type)
            except ApiError as error:
                if error.status not in RETRIABLE or attempt == ATTEMPTS:
                    raise
                wait = error.retry_after or 0.25 * 2**attempt
                await asyncio.sleep(min(wait, MAX_RETRY_AFTER_SECONDS) * random.uniform(1.0, 1.25))  # noqa: S311
        raise AssertionError("unreachable: the loop returns or raises")

    async def _once(self, method: str, url: str, body: Obj | None, content_type: str) -> Any:
        headers = {"Content-Type": content_type} if body is not None else {}
        data = orjson.dumps(body) if body is not None else None
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS)
        try:
            async with self._session.request(method, url, data=data, headers=headers, timeout=timeout) as response:
                raw = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            metrics.ERRORS.labels("api-connection").inc()
            raise ApiUnavailableError(
                f"{method} {url.split('?', maxsplit=1)[0]}: {type(error).__name__}: {error}"
            ) from error
        parsed = _parse(raw)
        if response.status >= 400:
            raise error_of(response.status, parsed, response.headers.get("Retry-After"))
        return parsed


def _parse(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return raw[:500].decode(errors="replace")
