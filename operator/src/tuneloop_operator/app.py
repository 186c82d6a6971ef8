"""Wires the operator: settings, Lease, queue, polls, kopf; and takes it down in the other order. Never decides."""

import asyncio
import importlib.metadata
import logging
import os
import signal
import socket

from tuneloop_core.constants import OPERATOR_LIVENESS_PORT, OPERATOR_METRICS_PORT
from tuneloop_core.settings import Settings
from tuneloop_operator import metrics
from tuneloop_operator.handlers import operator
from tuneloop_operator.kube.client import Client
from tuneloop_operator.kube.credentials import Credentials, load_credentials
from tuneloop_operator.kube.errors import ForbiddenError
from tuneloop_operator.kube.events import EventSink
from tuneloop_operator.kube.issuer import Issuer
from tuneloop_operator.kube.lease import Lease
from tuneloop_operator.kube.pods import PodClient
from tuneloop_operator.kube.resources import LEASES
from tuneloop_operator.kube.servertokens import ServerTokens
from tuneloop_operator.reconcile.addresses import ClusterAddresses
from tuneloop_operator.reconcile.cache import Cache
from tuneloop_operator.reconcile.census import Census
from tuneloop_operator.reconcile.context import Context
from tuneloop_operator.reconcile.deployment import DeploymentReconciler
from tuneloop_operator.reconcile.engine import Engine
from tuneloop_operator.reconcile.finetune import FineTuneReconciler
from tuneloop_operator.reconcile.gateways import Gateways
from tuneloop_operator.reconcile.heartbeat import FROZEN_AFTER_SECONDS, Heartbeat
from tuneloop_operator.reconcile.inbox import Inbox
from tuneloop_operator.reconcile.namespaces import Namespaces
from tuneloop_operator.reconcile.polls import Polls
from tuneloop_operator.reconcile.queue import KeyedQueue, cancel
from tuneloop_operator.reconcile.scaling import Scaler
from tuneloop_operator.serve import serve

logger = logging.getLogger(__name__)

LEASE_NAME = "tuneloop-operator"
EXIT_LEASE_LOST = 70
WORKERS = 16


async def main(settings: Settings) -> int:
    """Run until SIGTERM (0), a dead watch (1) or a lost Lease (the process ends at once)."""
    identity = os.environ.get("TUNELOOP_IDENTITY") or socket.gethostname()  # the pod's name
    credentials = load_credentials()
    frozen_after = float(os.environ.get("TUNELOOP_FROZEN_SECONDS", FROZEN_AFTER_SECONDS))
    heartbeat = Heartbeat(LEASE_NAME, identity, frozen_after)
    election = Client(credentials)
    lease = Lease(election, settings.namespace, LEASE_NAME, identity)
    stop = _on_signals()
    async with serve(heartbeat, _port("LIVENESS", OPERATOR_LIVENESS_PORT), _port("METRICS", OPERATOR_METRICS_PORT)):
        try:
            if not await _acquire(lease, stop):
                return 0
            return await _lead(credentials, settings, lease, heartbeat, stop)
        finally:
            await lease.release()
            await election.close()


def _on_signals() -> asyncio.Event:
    """Set by SIGTERM and SIGINT, until kopf takes both over."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _acquire(lease: Lease, stop: asyncio.Event) -> bool:
    """Wait for the Lease; False when ``stop`` was set first."""
    stopping = asyncio.create_task(_until(stop))
    acquiring = asyncio.create_task(lease.acquire())
    await asyncio.wait({stopping, acquiring}, return_when=asyncio.FIRST_COMPLETED)
    await cancel(stopping, acquiring)
    return not stop.is_set()


async def _until(event: asyncio.Event) -> None:
    await event.wait()


async def _lead(
    credentials: Credentials, settings: Settings, lease: Lease, heartbeat: Heartbeat, stop: asyncio.Event
) -> int:
    client = Client(credentials, fence=lease.check)
    pods = PodClient(ServerTokens(client, settings.namespace, settings.service_account).value)
    cache = Cache()
    metrics.REGISTRY.register(Census(cache))
    queue = KeyedQueue(lambda key: engine.process(key), workers=WORKERS)  # noqa: PLW0108 - made below
    polls = Polls(pods, settings.progress_interval_seconds, queue.add)
    gateways = Gateways(client, pods, settings, lambda key: queue.add(key) if cache.get(*key) else None)
    scaler = Scaler(gateways, pods, queue.add)
    context = Context(
        client=client,
        cache=cache,
        events=EventSink(client, lease.identity),
        namespaces=Namespaces(client, cache, settings),
        polls=polls,
        gateways=gateways,
        scaler=scaler,
        issuer=Issuer(client),
        addresses=ClusterAddresses(client, settings),
        settings=settings,
        version=importlib.metadata.version("tuneloop-operator"),
    )
    deployments = DeploymentReconciler(context)
    inbox = Inbox(cache, queue.add, deployments.dependents)
    engine = Engine(context, FineTuneReconciler(context), deployments, inbox.wake_dependents)
    holding = asyncio.create_task(lease.hold(), name="lease")
    holding.add_done_callback(_end_process)
    beside = {"polls": polls.run(), "gateways": gateways.run(), "scaling": scaler.run()}
    asking = [asyncio.create_task(each, name=name) for name, each in beside.items()]
    queue.start()
    if await _may_watch_leases(client, settings):
        heartbeat.start()
    try:
        await operator.run(client, inbox, heartbeat, watched_namespaces(settings), stop)
    except Exception:
        logger.exception("a watch died; the process ends, so that it starts from fresh lists")
        return 1
    else:
        return 0
    finally:
        await queue.stop()
        holding.remove_done_callback(_end_process)
        await cancel(holding, *asking)
        await pods.close()
        await client.close()


async def _may_watch_leases(client: Client, settings: Settings) -> bool:
    """Whether our role lets us watch the Lease; without, liveness cannot tell a frozen watch path."""
    try:
        for namespace in watched_namespaces(settings) or [""]:
            await client.list(LEASES, namespace, fields=f"metadata.name={LEASE_NAME}", limit=1)
    except ForbiddenError as error:
        logger.warning("liveness cannot see a frozen watch: the role lacks list and watch on leases: %s", error)
        return False
    return True


def watched_namespaces(settings: Settings) -> list[str]:
    """All (empty), or those of the settings and our own, where the Lease is whose events prove the watch path."""
    return sorted({*settings.namespaces, settings.namespace}) if settings.namespaces else []


def _end_process(_: "asyncio.Task[None]") -> None:
    """The Lease is lost: another may lead already, so not even cleanup may run."""
    logging.shutdown()
    os._exit(EXIT_LEASE_LOST)


def _port(name: str, default: int) -> int:
    """A port, which tests on one machine move by ``TUNELOOP_LIVENESS_PORT`` and ``TUNELOOP_METRICS_PORT``."""
    return int(os.environ.get(f"TUNELOOP_{name}_PORT", default))
