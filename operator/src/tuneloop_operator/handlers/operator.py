"""kopf, set up and run in this process. Never writes: no finalizer, no annotation, no event is kopf's."""

import asyncio
from collections.abc import Sequence
from typing import Any

import kopf

from tuneloop_operator.handlers.storage import NoDiffs, NoProgress
from tuneloop_operator.handlers.watches import build_registry, select
from tuneloop_operator.kube.client import Client
from tuneloop_operator.kube.session import open_session
from tuneloop_operator.reconcile.heartbeat import Heartbeat
from tuneloop_operator.reconcile.inbox import Inbox


async def run(
    client: Client, inbox: Inbox, heartbeat: Heartbeat, namespaces: Sequence[str], stop: asyncio.Event
) -> None:
    """Watch until ``stop`` is set or SIGTERM comes; raises when a watch dies. No namespaces means all."""

    async def login(**_: Any) -> kopf.AiohttpSession:
        # A session of its own, since kopf closes what it was given; tokens rotate inside of it.
        session = open_session(client.credentials)
        return kopf.AiohttpSession(server=client.credentials.server, aiohttp_session=session)

    await kopf.operator(
        registry=build_registry(inbox, heartbeat, login),
        settings=build_settings(heartbeat.lease_name),
        standalone=True,
        clusterwide=not namespaces,
        namespaces=list(namespaces),
        stop_flag=stop,
    )


def build_settings(lease: str) -> kopf.OperatorSettings:
    """Timeouts such that no watch can be silent for long; the reasons are in ADR 0020."""
    settings = kopf.OperatorSettings()
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    settings.watching.connect_timeout = 15
    settings.watching.inactivity_timeout = 70  # bookmarks come every 60 s
    settings.watching.chunk_size = 1000
    settings.networking.request_timeout = 60
    settings.networking.connect_timeout = 15
    settings.networking.enforce_retry_after = True
    settings.persistence.diffbase_storage = NoDiffs()
    settings.persistence.progress_storage = NoProgress()
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.process.ultimate_exiting_timeout = 30
    select(settings, lease)
    return settings
