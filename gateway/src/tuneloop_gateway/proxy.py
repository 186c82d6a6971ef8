"""The public side: who asks, for what, and which server pod answers.

An application for ``http_server``. Holds the routing table of the moment and the endpoints; the table may be replaced
between any two requests. Never logs a body or a key, and lets no header of a client reach a server but its request id.
"""

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from typing import Final, cast

import orjson

from tuneloop_core.settings import HoldSettings
from tuneloop_gateway import access, affinity, arms, body, errors, feedback
from tuneloop_gateway.auth import digest_of_header
from tuneloop_gateway.body import Asked
from tuneloop_gateway.config import Limits
from tuneloop_gateway.errors import ApiError, Reply
from tuneloop_gateway.exchange import CLIENT_LEFT, Exchange
from tuneloop_gateway.forward import Forwarder, Parcel
from tuneloop_gateway.hold import Holds, Place, Stay, tell
from tuneloop_gateway.http_messages import Request, request_id
from tuneloop_gateway.http_server import ServerConnection
from tuneloop_gateway.ledger import Entry, Ledger
from tuneloop_gateway.measure import Labels, Measures
from tuneloop_gateway.ratelimit import estimate
from tuneloop_gateway.routes import Address, Deployment, Route, Table
from tuneloop_gateway.server_tokens import ServerTokens
from tuneloop_gateway.turns import room_of

log = logging.getLogger(__name__)

OPERATIONS: Final = {
    b"chat/completions": "chat",
    b"completions": "text_completion",
    b"embeddings": "embeddings",
    b"classify": "classify",
    b"score": "score",
}
UPSTREAM_PATHS: Final = {
    "chat": b"/v1/chat/completions",
    "text_completion": b"/v1/completions",
    "embeddings": b"/v1/embeddings",
    "classify": b"/classify",  # vLLM has it outside /v1
    "score": b"/v1/score",
}
MODELS: Final = "models"
FEEDBACK: Final = "feedback"
OTHERS: Final = {b"models": MODELS, b"feedback": FEEDBACK}
HEALTH: Final = {b"/healthz": "healthz", b"/readyz": "readyz"}
TABLES: Final = 5  # how many tables a request that reached nobody is tried by


@dataclass(frozen=True)
class Call:
    """What the head of a request says."""

    operation: str
    namespace: str = ""
    digest: bytes | None = None


class Proxy:
    """Answers everything on the public port."""

    def __init__(  # noqa: PLR0913 - the parts of one process
        self,
        limits: Limits,
        allow_without_keys: bool,
        measures: Measures,
        tokens: ServerTokens,
        ledger: Ledger,
        hold: HoldSettings = HoldSettings(),  # noqa: B008 - frozen
    ) -> None:
        self._limits = limits
        self._allow = allow_without_keys
        self._measures = measures
        self.forwarder = Forwarder(limits, measures, tokens)
        self._hold = hold
        self.holds = Holds(hold, measures)
        self._changed = asyncio.Event()  # set, and replaced, when the table changes
        self.ledger = ledger
        self.table: Table | None = None  # None until the first complete look at the cluster
        self.draining = False

    # ---- from the process ----

    def set_table(self, table: Table) -> None:
        """Route by this table from now on."""
        self.table = table
        routes = [route for namespace in table.values() for route in namespace.models.values()]
        owners = {(r.deployment.namespace, r.deployment.name): arms.addresses(r) for r in routes}
        self.forwarder.set_owners(owners)
        self.ledger.forget_all_but(set(owners))
        self._measures.forget_all_but(arms.versions(table.values()))
        found = {route.deployment.key: route for route in reversed(routes)}
        self.holds.look(found.get, {key: self._room(found[key].deployment, len(owners[key])) for key in owners})
        self._changed.set()
        self._changed = asyncio.Event()

    def _room(self, deployment: Deployment, replicas: int) -> int:
        default = self._hold.ongoing_per_replica
        return room_of(replicas, deployment.sequences, default, on_cpu=deployment.on_cpu)

    def drain(self) -> None:
        """No longer ready; streams go on, and nothing is held any more."""
        self.draining = True
        self.holds.drain()

    def sweep(self, now: float) -> None:
        """Look for silent servers and old connections; called about once a second."""
        self.forwarder.sweep(now)
        self.holds.sweep()
        self.ledger.log.flush()

    def close(self) -> None:
        """Close the kept connections to servers, and write the last lines of the access log."""
        self.forwarder.close()
        self.ledger.log.finish()

    @property
    def ready(self) -> bool:
        """Whether this gateway should get traffic."""
        return self.table is not None and not self.draining

    # ---- from http_server ----

    def refuse(self, request: Request) -> Reply | None:
        """Path, method and key, before a byte of the body is kept."""
        request.path, _, _ = request.url.partition(b"?")
        request.id = request_id(request.headers.get(b"x-request-id"))
        try:
            request.context = self._call(request)
        except ApiError as error:
            self.ledger.refused(request, error.reply)
            return error.reply
        return None

    async def handle(self, request: Request, connection: ServerConnection) -> None:
        """Answer one request."""
        call = cast(Call, request.context)
        try:
            if call.operation in UPSTREAM_PATHS:
                await self._infer(call, request, connection)
            elif call.operation == FEEDBACK:
                connection.reply(request, self._feedback(call, request.body()))
            else:
                connection.reply(request, self._answer(call))
        except ApiError as error:
            self._measures.reject(error.reply.status, error.reply.reason)
            if not error.logged:
                self.ledger.refused(request, error.reply, call.namespace)
            tell(connection, request, error.reply)
        except Exception:
            log.exception("a request failed in the gateway itself", extra={"request": request.id.decode()})
            request.keep_alive = False
            if not connection.answered:
                connection.reply(request, Reply(500, errors.error_body("The gateway failed.", "server_error")))

    # ---- what is asked ----

    def _call(self, request: Request) -> Call:
        if request.path in HEALTH:
            return Call(_checked(request, HEALTH[request.path], b"GET"))
        parts = request.path.split(b"/", 3)
        if len(parts) != 4 or parts[0] or parts[2] != b"v1" or not parts[1]:
            raise ApiError(errors.unknown_path())
        operation = OPERATIONS.get(parts[3]) or OTHERS.get(parts[3], "")
        if not operation:
            raise ApiError(errors.unknown_path())
        _checked(request, operation, b"GET" if operation == MODELS else b"POST")
        if self.table is None:
            raise ApiError(errors.unavailable("The gateway is starting.", 1, "starting"))
        name, digest = parts[1].decode("ascii", "replace"), digest_of_header(request.headers.get(b"authorization"))
        access.admit(self.table.get(name), name, digest, self._allow)
        return Call(operation, name, digest)

    def _answer(self, call: Call) -> Reply:
        if call.operation == MODELS:
            return self._models(call)
        if call.operation == "readyz" and not self.ready:
            return Reply(503, b"draining\n" if self.draining else b"no routing table yet\n", content_type=b"text/plain")
        return Reply(200, b"ok\n", content_type=b"text/plain")

    def _models(self, call: Call) -> Reply:
        namespace = (self.table or {}).get(call.namespace, access.NOTHING)
        routes = access.usable(namespace, call.digest, self._allow)
        data = [
            {"id": route.model, "object": "model", "created": route.created, "owned_by": call.namespace}
            for route in routes
            if route.engine_name
        ]
        return Reply(200, orjson.dumps({"object": "list", "data": data}))

    def _feedback(self, call: Call, raw: bytes) -> Reply:
        response, score = feedback.parse(raw)
        namespace = (self.table or {}).get(call.namespace, access.NOTHING)
        arm = feedback.arm_of(call.namespace, access.usable(namespace, call.digest, self._allow), response)
        version = call.namespace, arm.deployment, arm.model, arm.engine_name, arm.revision
        self._measures.feedback(version, good=score >= feedback.GOOD)
        return feedback.reply(response, arm, score)

    # ---- inference ----

    def _asked(self, call: Call, request: Request) -> tuple[Asked, Route]:
        """What the body says, and its route by the table of this moment.

        Raises:
            ApiError: 400, or 404 that lists what the key may use.
        """
        namespace = (self.table or {}).get(call.namespace, access.NOTHING)  # it may have changed while the body came
        asked = body.parse(request.body())
        if not asked.model:
            usable = access.usable(namespace, call.digest, self._allow)
            raise ApiError(errors.missing_model(route.model for route in usable))
        route = access.find(namespace, asked.model, call.digest, self._allow)
        return asked, arms.choose(route, asked.fields, request.id)

    async def _infer(self, call: Call, request: Request, connection: ServerConnection) -> None:
        asked, route = self._asked(call, request)
        entry = self.ledger.open(request, route, self._key(call, route), asked, time.monotonic())
        place = Place(self.holds)
        try:
            if route.engine_name and not place.take(route):
                stay = self._stay(call, request, connection, route, asked, place)
                entry.fields = {}
                del asked  # only the bytes are held, what they were parsed into is many times larger
                found = await self._held(call, stay, entry)
                if found is None:
                    return
                asked, route = found
                entry = self.ledger.resume(entry, route, self._key(call, route), asked, time.monotonic())
            await self._served(call, connection, entry, asked, place)
        finally:
            place.give()

    def _key(self, call: Call, route: Route) -> str:
        return access.opener(route, call.digest, self._allow) or ""

    async def _served(self, call: Call, connection: ServerConnection, entry: Entry, asked: Asked, place: Place) -> None:
        """Measure the request, and see to its answer."""
        request, route = entry.request, entry.route
        labels = _labels(call, route)
        meter = self._measures.meter(labels, request.received, route.deployment.objective, request.id)
        exchange = Exchange(request, connection, meter, self._limits, asked)
        try:
            reply = await self._forward(call, request, route, asked, exchange)
            if reply is not None and exchange.reached_nobody:
                reply = await self._later(call, request, route, exchange, reply, place)
            if reply is not None:
                exchange.code, exchange.failure = str(reply.status), exchange.failure or reply.reason
                tell(connection, request, reply)
        except ApiError as error:
            exchange.code, error.logged = str(error.reply.status), True
            raise
        except asyncio.CancelledError:
            exchange.code = CLIENT_LEFT
            raise
        finally:
            now = time.monotonic()
            meter.end(exchange.code, exchange.failed, now)
            self.ledger.close(entry, exchange, meter, now)

    async def _forward(
        self, call: Call, request: Request, route: Route, asked: Asked, exchange: Exchange
    ) -> Reply | None:
        """Hand the request to the forwarder; None once the client has its answer."""
        if not route.engine_name:
            return self._not_loaded(route)
        sent = body.rewrite(asked, route.engine_name)
        key = affinity.prompt_key(asked.fields, route.engine_name, self._limits.prefix_bytes)
        home = affinity.hash64(route.engine_name.encode()) if _may_be_parked(route) else None
        owner = route.deployment.namespace, route.deployment.name
        path = UPSTREAM_PATHS[call.operation]
        parcel = Parcel(owner, route.model, route.addresses, path, sent, arms.tagged(request.id, route), key, home)
        return await self.forwarder.send(parcel, exchange)

    # ---- no replica ----

    def _stay(  # noqa: PLR0913 - all that is known of one request
        self, call: Call, request: Request, connection: ServerConnection, route: Route, asked: Asked, place: Place
    ) -> Stay:
        cost = estimate(asked.fields, request.size)
        return Stay(request, connection, asked.stream, self._key(call, route), cost, place)

    async def _held(self, call: Call, stay: Stay, entry: Entry) -> tuple[Asked, Route] | None:
        """Wait for a replica before anything is measured; None if the request was answered without one."""
        code, reason = CLIENT_LEFT, ""
        try:
            found = await self._wait(call, stay, entry.route)
            code, reason = (str(found.status), found.reason) if isinstance(found, Reply) else ("", "")
        except ApiError as error:
            code, reason, error.logged = str(error.reply.status), error.reply.reason, True
            raise
        finally:
            if code:
                self._withdraw(call, entry, code, reason)
        if not isinstance(found, Reply):
            return found
        tell(stay.connection, stay.request, found)
        return None

    def _withdraw(self, call: Call, entry: Entry, code: str, reason: str) -> None:
        """Measure and account for a request that ends before it met a server."""
        route, now = entry.route, time.monotonic()
        meter = self._measures.meter(_labels(call, route), entry.request.received, route.deployment.objective)
        meter.end(code, code >= "500", now)
        self.ledger.withdraw(entry, code, reason, now)

    async def _wait(self, call: Call, stay: Stay, route: Route) -> Reply | tuple[Asked, Route]:
        while True:
            reply = await self.holds.wait(route, stay)
            if reply is not None:
                return reply
            asked, route = self._asked(call, stay.request)
            if not route.engine_name or (route.addresses and route.deployment.key == stay.place.key):
                return asked, route
            stay.place.give(unused=True)

    async def _later(  # noqa: PLR0913 - all that is known of one request
        self, call: Call, request: Request, route: Route, exchange: Exchange, reply: Reply, place: Place
    ) -> Reply | None:
        """No pod of the table could be reached, so the table may be about to change: ask by the next one.

        Nothing was sent yet, so nothing is repeated. Without a next one it stays with ``reply``.
        """
        answer: Reply | None = reply
        for _ in range(TABLES):
            await self._change_of(call, route)
            asked, fresh = self._asked(call, request)
            if fresh.addresses == route.addresses:
                break
            if not fresh.addresses and fresh.engine_name:
                place.give()
                stay = self._stay(call, request, exchange.client, fresh, asked, place)
                with exchange.meter.waiting():
                    found = await self._wait(call, stay, fresh)
                if isinstance(found, Reply):
                    return found
                asked, fresh = found
            answer, route = await self._forward(call, request, fresh, asked, exchange), fresh
            if answer is None or not exchange.reached_nobody:
                break
        return answer

    async def _change_of(self, call: Call, route: Route) -> None:
        """Wait until the route leads elsewhere, a moment at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.settle_seconds):
                while self._addresses(call, route) == route.addresses:
                    await self._changed.wait()

    def _addresses(self, call: Call, route: Route) -> tuple[Address, ...]:
        found = (self.table or {}).get(call.namespace, access.NOTHING).models.get(route.model)
        return found.addresses if found is not None else ()

    def _not_loaded(self, route: Route) -> Reply:
        message = f"The adapter '{route.model}' is not loaded yet. {route.message}".strip()
        return errors.unavailable(message, self._limits.retry_after_seconds)


def _labels(call: Call, route: Route) -> Labels:
    version = route.model, call.operation, route.engine_name, route.revision
    return Labels(call.namespace, route.deployment.name, *version)


def _may_be_parked(route: Route) -> bool:
    return route.deployment.crowded and route.model != route.deployment.name


def _checked(request: Request, operation: str, method: bytes) -> str:
    if request.method != method:
        raise ApiError(errors.wrong_method(method))
    return operation
