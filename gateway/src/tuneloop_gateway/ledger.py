"""The account of every request: whose it is, whether its key may, what it used, and its line in the access log.

One object for the process. Knows limits and counts, never connections; the proxy opens an entry before a request goes
to a server and closes it whatever became of it.
"""

from dataclasses import dataclass
from math import ceil
from typing import Any, Final

from tuneloop_gateway import errors
from tuneloop_gateway.accesslog import AccessLog
from tuneloop_gateway.body import Asked
from tuneloop_gateway.errors import ApiError, Reply
from tuneloop_gateway.exchange import CLIENT_LEFT, Exchange
from tuneloop_gateway.http_messages import Request
from tuneloop_gateway.measure import Meter
from tuneloop_gateway.ratelimit import Allowance, estimate
from tuneloop_gateway.routes import Route
from tuneloop_gateway.usage import UsageCollector, Used

NO_KEY: Final = "none"  # of a deployment that is open to everyone


@dataclass(frozen=True)
class Entry:
    """One request under way."""

    request: Request
    route: Route
    key: str
    asked: Asked
    used: Used
    allowance: Allowance | None
    reserved: int


class Ledger:
    """What each key may use and has used, in this gateway."""

    def __init__(self, log: AccessLog) -> None:
        self.log = log
        self.usage = UsageCollector()
        self.gateways = 1  # ready ones; each gives out its share of a limit
        self._allowances: dict[tuple[str, str, str], Allowance] = {}  # by namespace, deployment, key

    def forget_all_but(self, owners: set[tuple[str, str]]) -> None:
        """Drop what belongs to deployments that are gone."""
        self.usage.forget_all_but(owners)
        for gone in [owner for owner in self._allowances if owner[:2] not in owners]:
            del self._allowances[gone]

    def open(self, request: Request, route: Route, key: str, asked: Asked, now: float) -> Entry:
        """Reserve what the request will use; its answer then carries OpenAI's headers of limits.

        Raises:
            ApiError: 429 with Retry-After, where the key's limit is used up.
        """
        owner, key = route.deployment, key or NO_KEY
        used = self.usage.of((owner.namespace, owner.name, route.model, key))
        allowance = self._allowance(route, key, now)
        if allowance is None:
            return Entry(request, route, key, asked, used, None, 0)
        reserved = estimate(asked.fields, request.size)
        short, seconds = allowance.reserve(reserved, now)
        request.extra = allowance.headers()
        if not short:
            return Entry(request, route, key, asked, used, allowance, reserved)
        used.limited += 1
        reply = errors.rate_limited(key, short, getattr(allowance.quota, short), ceil(seconds))
        self._write(Entry(request, route, key, asked, used, None, 0), {"status": reply.status})
        raise ApiError(reply, logged=True)

    def _allowance(self, route: Route, key: str, now: float) -> Allowance | None:
        quota = route.deployment.quota
        if not quota.requests and not quota.tokens:
            return None
        owner = (route.deployment.namespace, route.deployment.name, key)
        found = self._allowances.get(owner)
        if found is None or found.quota != quota:
            found = self._allowances[owner] = Allowance(quota, self.gateways, now)
        found.share_among(self.gateways)
        return found

    def close(self, entry: Entry, exchange: Exchange, meter: Meter, now: float) -> None:
        """The request ended: settle, count, and write its line."""
        usage, used = meter.usage, entry.used
        used.requests += 1
        prompt, completion = (usage.prompt, usage.completion) if usage else (0, 0)
        used.prompt += prompt
        used.completion += completion
        if entry.allowance is not None and (usage or exchange.code != CLIENT_LEFT):
            entry.allowance.settle(entry.reserved, prompt + completion, now)
        line: dict[str, Any] = {"status": int(exchange.code), "promptTokens": prompt, "completionTokens": completion}
        line |= {"ttft": meter.ttft, "e2e": round(now - entry.request.received, 6), "stream": entry.asked.stream}
        self._write(entry, line | {"replica": exchange.replica.decode(), "failure": exchange.failure})

    def _write(self, entry: Entry, line: dict[str, Any]) -> None:
        owner = entry.route.deployment
        who = {"id": entry.request.id.decode(), "namespace": owner.namespace, "deployment": owner.name}
        who |= {"model": entry.route.model, "engineName": entry.route.engine_name, "key": entry.key}
        self.log.write(who | line, entry.asked.fields)

    def refused(self, request: Request, reply: Reply, namespace: str = "") -> None:
        """A request that met no route: no key, no such model, a body that does not parse."""
        who = {"id": request.id.decode(), "namespace": namespace, "status": reply.status, "failure": reply.reason}
        self.log.write(who)
