"""Kubernetes Events on our resources, for ``kubectl describe``. Never more than one of the same words per hour.

Events are told for transitions only, which the status remembers; the memory here only covers a status write that was
refused after its Event went out. An Event that cannot be written is logged and forgotten.
"""

import logging
import time
from datetime import UTC, datetime
from uuid import uuid4

from tuneloop_operator.kube.client import Client
from tuneloop_operator.kube.errors import ApiError, ApiUnavailableError
from tuneloop_operator.kube.resources import EVENTS, Obj

logger = logging.getLogger(__name__)

REPEAT_AFTER_SECONDS = 3600.0
MEMORY = 4096
MESSAGE_LIMIT = 1024
COMPONENT = "tuneloop-operator"


class EventSink:
    """Writes Events, each (object, reason, message) once an hour at most."""

    def __init__(self, client: Client, instance: str) -> None:
        self._client, self._instance = client, instance
        self._told: dict[tuple[str, str, str], float] = {}

    async def tell(self, about: Obj, reason: str, message: str, *, warning: bool = False) -> None:
        """Write one Event about the object; never raises for a refused or lost one."""
        key = (about["metadata"]["uid"], reason, message)
        if not self._is_new(key, time.monotonic()):
            return
        try:
            await self._client.create(EVENTS, self._body(about, reason, message, "Warning" if warning else "Normal"))
        except (ApiError, ApiUnavailableError) as error:
            logger.warning("event %s was not written: %s", reason, error)

    def _is_new(self, key: tuple[str, str, str], now: float) -> bool:
        if now - self._told.get(key, float("-inf")) < REPEAT_AFTER_SECONDS:
            return False
        while len(self._told) >= MEMORY:
            del self._told[next(iter(self._told))]
        self._told[key] = now
        return True

    def _body(self, about: Obj, reason: str, message: str, kind: str) -> Obj:
        now = datetime.now(UTC)
        metadata, seconds = about["metadata"], now.strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"namespace": metadata["namespace"], "name": f"{metadata['name']}.{uuid4().hex[:16]}"},
            "involvedObject": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
                "resourceVersion": metadata.get("resourceVersion", ""),
            },
            "type": kind,
            "reason": reason,
            "message": message[:MESSAGE_LIMIT],
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._instance,
            "firstTimestamp": seconds,
            "lastTimestamp": seconds,
            "count": 1,
        }
