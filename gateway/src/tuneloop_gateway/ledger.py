"""The account of every request: whose it is, whether its key may, what it used, and its line in the access log.

One object for the process. Knows limits and counts, never connections; the proxy opens an entry before a request is
held or goes to a server, and closes or withdraws it whatever became of it.
"""

from dataclasses import dataclass, field
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


@dataclass(slots=True)
class Entry:
    """One request under way, or held."""

    request: Request
    route: Route
    key: str
    stream: bool
    used: Used
    allowance: Allowance | None = None
    reserved: int = 0  # tokens
    fields: dict[str, Any] = field(default_factory=dict)  # of its body; none while it is held


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
            return Entry(request, route, key, asked.stream, used, fields=asked.fields)
        reserved = estimate(asked.fields, request.size)
        short, seconds = allowance.reserve(reserved, now)
        request.extra = allowance.headers()
        entry = Entry(request, route, key, asked.stream, used, allowance, reserved, asked.fields)
        if not short:
            return entry
        used.limited += 1
        reply = errors.rate_limited(key, short, getattr(allowance.quota, short), ceil(seconds))
        self._write(entry, {"status": reply.status})
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
        line |= {"ttft": meter.ttft, "e2e": round(now - entry.request.received, 6), "stream": entry.stream}
        self._write(entry, line | {"replica": exchange.replica.decode(), "failure": exchange.failure})

    def resume(self, entry: Entry, route: Route, key: str, asked: Asked, now: float) -> Entry:
        """It was held and goes to a server now: by the same account, unless the name, or the key, became another's.

        Raises:
            ApiError: 429, where the other account is used up.
        """
        if (route.deployment.key, key or NO_KEY) != (entry.route.deployment.key, entry.key):
            self._give_back(entry, now)
            return self.open(entry.request, route, key, asked, now)
        entry.route, entry.fields = route, asked.fields
        return entry

    def withdraw(self, entry: Entry, code: str, failure: str, now: float) -> None:
        """It was held and met no server: what it reserved goes back, and its line says how it ended."""
        self._give_back(entry, now)
        entry.used.requests += 1
        line: dict[str, Any] = {"status": int(code), "promptTokens": 0, "completionTokens": 0, "ttft": None}
        line |= {"e2e": round(now - entry.request.received, 6), "stream": entry.stream, "replica": ""}
        self._write(entry, line | {"failure": failure})

    def _give_back(self, entry: Entry, now: float) -> None:
        if entry.allowance is not None:
            entry.allowance.give_back(entry.reserved, now)
            entry.request.extra = entry.allowance.headers()

    def _write(self, entry: Entry, line: dict[str, Any]) -> None:
        owner = entry.route.deployment
        who = {"id": entry.request.id.decode(), "namespace": owner.namespace, "deployment": owner.name}
        who |= {"model": entry.route.model, "engineName": entry.route.engine_name, "key": entry.key}
        self.log.write(who | line, entry.fields)

    def refused(self, request: Request, reply: Reply, namespace: str = "") -> None:
        """A request that met no route: no key, no such model, a body that does not parse."""
        who = {"id": request.id.decode(), "namespace": namespace, "status": reply.status, "failure": reply.reason}
        self.log.write(who)
