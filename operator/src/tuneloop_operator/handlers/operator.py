"""kopf, set up and run in this process. Never writes: no finalizer, no annotation, no event is kopf's."""

import asyncio
import logging
from collections.abc import Collection, Sequence
from typing import Any

import kopf

from tuneloop_operator.handlers.storage import NoDiffs, NoProgress
from tuneloop_operator.handlers.watches import build_registry, select
from tuneloop_operator.kube.client import Client
from tuneloop_operator.kube.session import open_session
from tuneloop_operator.reconcile.heartbeat import Heartbeat
from tuneloop_operator.reconcile.inbox import Inbox

logger = logging.getLogger(__name__)

STOP_SECONDS = 5.0


async def run(
    client: Client, inbox: Inbox, heartbeat: Heartbeat, namespaces: Sequence[str], stop: asyncio.Event
) -> None:
    """Watch until SIGTERM comes; raises when a watch dies. No namespaces means all.

    ``stop`` is set if the signal came before kopf's handlers took the place of ours: nothing else would tell of it.

    kopf's own ``run_tasks`` waits without limit for what it cancels, and a watch that is being opened at that moment
    never ends (kopf 1.45.2, ``request_cancel_callback``): the process would live on without watches. So its tasks are
    supervised here: the first that ends, ends all.
    """

    async def login(**_: Any) -> kopf.AiohttpSession:
        # A session of its own, since kopf closes what it was given; tokens rotate inside of it.
        session = open_session(client.credentials)
        return kopf.AiohttpSession(server=client.credentials.server, aiohttp_session=session)

    tasks = await kopf.spawn_tasks(
        registry=build_registry(inbox, heartbeat, login),
        settings=build_settings(heartbeat.lease_name),
        standalone=True,
        clusterwide=not namespaces,
        namespaces=list(namespaces),
    )
    await _supervise([*tasks, asyncio.create_task(stop.wait(), name="stop")])


async def _supervise(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Wait for the first task to end, cancel the others for at most five seconds, raise what went wrong."""
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    if pending:
        _, hung = await asyncio.wait(pending, timeout=STOP_SECONDS)
        for task in hung:
            logger.warning("kopf's task %r does not end; it dies with the process", task.get_name())
    for task in done:
        task.result()


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
    settings.networking.error_backoffs = (0.5, 1, 2, 4)  # then the process ends and its successor begins anew
    settings.persistence.diffbase_storage = NoDiffs()
    settings.persistence.progress_storage = NoProgress()
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.process.ultimate_exiting_timeout = 30
    select(settings, lease)
    return settings
