"""One request's way to a server pod that answers it: the choice, the attempts, and what is learnt from each.

Until the first byte of an answer nothing has reached the client, so the request may go to another replica: after a
connection that could not be made, one that broke, a stream whose head did not come in time, and a 502, 503 or 404 (a
pod that drains, starts, or has not loaded the adapter yet). After that byte never. Never reads a body and never changes
one.
"""

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tuneloop_gateway import balance, errors, outlier
from tuneloop_gateway.affinity import Home
from tuneloop_gateway.config import Limits
from tuneloop_gateway.errors import Reply
from tuneloop_gateway.exchange import Exchange, Outcome
from tuneloop_gateway.http_client import ClientConnection, Endpoint, Endpoints
from tuneloop_gateway.http_messages import post_bytes
from tuneloop_gateway.measure import Measures
from tuneloop_gateway.retry import ATTEMPTS, RetryBudget
from tuneloop_gateway.routes import Address
from tuneloop_gateway.server_tokens import ServerTokens

log = logging.getLogger(__name__)

Owner = tuple[str, str]  # namespace and name of a deployment


@dataclass(frozen=True)
class Parcel:
    """What is sent, and to whom it may go."""

    owner: Owner
    model: str  # as the client named it
    addresses: tuple[Address, ...]
    path: bytes
    body: bytes
    identity: bytes  # what the server is told as the request's id, the same on every attempt
    key: int | None = None  # of the prompt's beginning, for affinity
    home: int | None = None  # of the adapter, where replicas cannot hold all adapters


class Forwarder:
    """Sends requests to endpoints and keeps what is known of each."""

    def __init__(self, limits: Limits, measures: Measures, tokens: ServerTokens) -> None:
        self._rules = limits.outlier
        self._measures = measures
        self._tokens = tokens
        self._endpoints = Endpoints(limits)
        self._budgets: dict[Owner, RetryBudget] = {}
        self._exchanges: set[Exchange] = set()
        self._homes: dict[tuple[Owner, int], int] = {}  # adapters that replicas may have to load -> requests under way
        self.ejections: dict[tuple[str, str, str], int] = {}  # (namespace, deployment, reason) -> since the start
        self.retries: dict[tuple[str, str, str], int] = {}  # the same, of requests that were sent once more
        self._owners: dict[Owner, tuple[Address, ...]] = {}

    # ---- from the process ----

    def set_owners(self, owners: dict[Owner, tuple[Address, ...]]) -> None:
        """Keep what is known of these deployments' endpoints, forget the rest."""
        self._owners = owners
        self._tokens.keep({namespace for namespace, _ in owners})
        self._endpoints.forget_all_but({address for addresses in owners.values() for address in addresses})
        for counted in (self.ejections, self.retries):
            for key in [key for key in counted if key[:2] not in owners]:
                del counted[key]
        for owner in self._budgets.keys() - owners.keys():
            del self._budgets[owner]

    def sweep(self, now: float) -> None:
        """Look for silent servers and old connections; called about once a second."""
        self._endpoints.sweep(now)
        for exchange in list(self._exchanges):
            exchange.check_silence(now)

    def close(self) -> None:
        """Close the kept connections to servers."""
        self._endpoints.close()
        self._tokens.close()

    def ejected(self) -> dict[Owner, int]:
        """How many endpoints of each deployment are passed over now; one whose time is over waits for a request."""
        now = time.monotonic()
        found = {owner: self._endpoints.of(addresses) for owner, addresses in self._owners.items()}
        return {owner: sum(each.health.out(now) for each in endpoints) for owner, endpoints in found.items()}

    # ---- one request ----

    async def send(self, parcel: Parcel, exchange: Exchange) -> Reply | None:
        """Find an endpoint that answers; None once the client has its answer, else the answer that it should get."""
        self._exchanges.add(exchange)
        if parcel.home is not None:
            self._count_home((parcel.owner, parcel.home), 1)
        try:
            return await self._send(parcel, exchange)
        finally:
            self._exchanges.discard(exchange)
            if parcel.home is not None:
                self._count_home((parcel.owner, parcel.home), -1)

    def _count_home(self, home: tuple[Owner, int], change: int) -> None:
        count = self._homes.get(home, 0) + change
        if count:
            self._homes[home] = count
        else:
            del self._homes[home]

    async def _send(self, parcel: Parcel, exchange: Exchange) -> Reply | None:
        budget = self._budgets.get(parcel.owner) or self._budgets.setdefault(parcel.owner, RetryBudget())
        budget.request()
        token = await self._tokens.value(parcel.owner[0])
        endpoints, tried = self._endpoints.of(parcel.addresses), list[Endpoint]()
        while (endpoint := self._pick(endpoints, tried, parcel)) is not None:
            tried.append(endpoint)
            outcome = await self._attempt(endpoint, endpoints, parcel, exchange, token)
            if outcome is Outcome.ANSWERED:
                return None
            if len(tried) == min(ATTEMPTS, len(endpoints)) or not self._may_retry(outcome, budget):
                break
            self._count(self.retries, parcel.owner, outcome.value)
        return exchange.withheld or errors.upstream_failed("No model server could be reached.", exchange.identity)

    def _pick(self, endpoints: Sequence[Endpoint], tried: Sequence[Endpoint], parcel: Parcel) -> Endpoint | None:
        now, home = time.monotonic(), None
        if parcel.home is not None:
            home = Home(parcel.home, self._homes[parcel.owner, parcel.home])
        chance = random.random()  # noqa: S311 - ties, not secrets
        endpoint = balance.pick(endpoints, now, chance, tried, parcel.key, home)
        if endpoint is not None and endpoint.health.due(now):
            endpoint.health.probing = True
        return endpoint

    def _may_retry(self, outcome: Outcome, budget: RetryBudget) -> bool:
        return outcome is Outcome.UNREACHABLE or budget.take()

    async def _attempt(
        self, endpoint: Endpoint, endpoints: Sequence[Endpoint], parcel: Parcel, exchange: Exchange, token: bytes
    ) -> Outcome:
        """One endpoint, and what it teaches."""
        data = post_bytes(parcel.path, endpoint.host, token, parcel.identity, parcel.body)
        endpoint.ongoing += 1
        try:
            outcome = await self._try(endpoint, data, exchange)
        except asyncio.CancelledError:
            endpoint.health.gave_up()
            raise
        finally:
            endpoint.ongoing -= 1
        self._learn(outcome, endpoint, endpoints, parcel, exchange)
        return outcome

    async def _try(self, endpoint: Endpoint, data: bytes, exchange: Exchange) -> Outcome:
        """A kept connection if there is one, a new one if that turns out to be dead."""
        kept = endpoint.kept()
        if kept is not None:
            outcome = await exchange.attempt(endpoint, kept, data)
            if outcome is not Outcome.STALE:
                return outcome
        fresh = await self._connect(endpoint, exchange)
        return await exchange.attempt(endpoint, fresh, data) if fresh else Outcome.UNREACHABLE

    async def _connect(self, endpoint: Endpoint, exchange: Exchange) -> ClientConnection | None:
        try:
            return await endpoint.connect()
        except OSError as error:  # TimeoutError is one
            exchange.failure, exchange.why = "connect", f"no connection: {error or type(error).__name__}"
            exchange.replica = endpoint.host
            return None

    # ---- what is learnt ----

    def _learn(
        self, outcome: Outcome, endpoint: Endpoint, endpoints: Sequence[Endpoint], parcel: Parcel, exchange: Exchange
    ) -> None:
        now, health = time.monotonic(), endpoint.health
        if outcome is Outcome.ANSWERED and not exchange.failure:
            return health.succeeded()
        if outcome is Outcome.UNREACHABLE:
            seconds = outlier.unreachable(health, now, self._rules)
        elif exchange.lacks_model:  # which says nothing of its health
            seconds = 0.0
            health.gave_up()
        else:
            seconds = outlier.failed(health, [each.health for each in endpoints], now, self._rules)
        self._measures.upstream_failed(exchange.failure)
        return self._tell(endpoint, parcel, exchange, seconds)

    def _tell(self, endpoint: Endpoint, parcel: Parcel, exchange: Exchange, seconds: float) -> None:
        """Log a failed attempt, and the ejection that it led to."""
        namespace, deployment = parcel.owner
        about = {"namespace": namespace, "deployment": deployment, "model": parcel.model}
        about |= {"replica": endpoint.host.decode(), "code": exchange.code}
        about |= {"request": exchange.identity.decode(), "why": exchange.why}
        if not seconds:
            return log.warning("a model server did not answer as it should", extra=about)
        self._count(self.ejections, parcel.owner, exchange.failure)
        return log.warning("a model server is passed over for a while", extra=about | {"seconds": seconds})

    def _count(self, counted: dict[tuple[str, str, str], int], owner: Owner, reason: str) -> None:
        key = (*owner, reason)
        counted[key] = counted.get(key, 0) + 1
