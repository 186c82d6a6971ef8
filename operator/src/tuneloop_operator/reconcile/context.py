"""What a reconcile works with, wired once at start. Never a decision."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from tuneloop_core.settings import Settings
from tuneloop_operator.kube.client import Client
from tuneloop_operator.kube.events import EventSink
from tuneloop_operator.kube.issuer import Issuer
from tuneloop_operator.reconcile.addresses import ClusterAddresses
from tuneloop_operator.reconcile.cache import Cache
from tuneloop_operator.reconcile.gateways import Gateways
from tuneloop_operator.reconcile.namespaces import Namespaces
from tuneloop_operator.reconcile.polls import Polls
from tuneloop_operator.reconcile.scaling import Scaler


def utc_now() -> datetime:
    """Now, in whole microseconds, with its zone."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Context:
    """Clients, cache and settings of this process."""

    client: Client
    cache: Cache
    events: EventSink
    namespaces: Namespaces
    polls: Polls
    gateways: Gateways
    scaler: Scaler
    issuer: Issuer
    addresses: ClusterAddresses
    settings: Settings
    version: str
    now: Callable[[], datetime] = utc_now
