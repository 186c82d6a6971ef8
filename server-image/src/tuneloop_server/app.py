"""What this server answers itself, and the way to the engine for the rest. Behind the guard, pure ASGI.

Bodies of inference requests pass untouched in both directions.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from pydantic import ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuneloop_core.serving import AdapterList, ServerStatus
from tuneloop_server.adapters import Adapters
from tuneloop_server.phases import Phases
from tuneloop_server.responses import send_bytes, send_error, send_json
from tuneloop_server.tasks import Task, misfit

POKE_LIMIT: Final = 1 << 20  # bytes
POKE_SECONDS: Final = 10.0  # a poke waits this long for its round, then answers with what is

STARTING: Final = "starting"
READY: Final = "ready"
DRAINING: Final = "draining"
BROKEN: Final = "engine failed"


@dataclass
class State:
    """The one mutable thing that the parts of this process share."""

    model: str
    adapters: Adapters
    phases: Phases
    task: Task = "generate"
    engine_app: ASGIApp | None = None
    engine_failed: Callable[[], bool] = field(default=lambda: False)
    ready: bool = False
    draining: bool = False
    in_flight: int = 0

    def health(self) -> str:
        """In one word or two; only READY is healthy."""
        if self.draining:
            return DRAINING
        if self.engine_failed():
            return BROKEN
        return READY if self.ready else STARTING

    def status(self) -> ServerStatus:
        """For the operator."""
        return ServerStatus(
            ready=self.health() == READY,
            draining=self.draining,
            model=self.model,
            adapters=self.adapters.states(),
            phases=self.phases.seconds(),
        )


class ServerApp:
    """Health, status and poke; the engine's application for everything else."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Route by exact path; the guard has already judged method and path."""
        match scope["path"]:
            case "/health":
                health = self._state.health()
                await send_bytes(send, 200 if health == READY else 503, health.encode(), "text/plain")
            case "/tuneloop/status":
                await self._send_status(send)
            case "/tuneloop/adapters":
                await self._poke(receive, send)
            case _:
                await self._engine(scope, receive, send)

    async def _send_status(self, send: Send) -> None:
        await send_json(send, 200, self._state.status().model_dump(mode="json", by_alias=True))

    async def _poke(self, receive: Receive, send: Send) -> None:
        body = await _read(receive, POKE_LIMIT)
        if body is None:
            await send_error(send, 413, f"An adapter list has at most {POKE_LIMIT} bytes.")
            return
        try:
            content = AdapterList.model_validate_json(body) if body.strip() else None
        except ValidationError as error:
            await send_error(send, 400, f"The body is no AdapterList: {error.errors(include_input=False)[0]['msg']}.")
            return
        self._state.adapters.poke(content)
        round_ = asyncio.create_task(self._state.adapters.round())
        await asyncio.wait([round_], timeout=POKE_SECONDS)
        await self._send_status(send)

    async def _engine(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._state.engine_app is None:
            await send_error(send, 503, "The model is starting.", {"retry-after": "5"})
            return
        if wrong := misfit(self._state.task, scope["path"]):
            await send_error(send, 400, wrong)
            return
        if scope["method"] == "GET":
            await self._state.engine_app(scope, receive, send)
            return
        self._state.in_flight += 1
        try:
            await self._state.engine_app(scope, receive, self._closing(send))
        finally:
            self._state.in_flight -= 1

    def _closing(self, send: Send) -> Send:
        """While draining, tell the client to open its next connection elsewhere."""

        async def wrapped(message: Message) -> None:
            if self._state.draining and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        return wrapped


async def _read(receive: Receive, limit: int) -> bytes | None:
    """The whole body, or None where it is longer than ``limit`` bytes."""
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if len(body) > limit:
            return None
        if not message.get("more_body", False):
            return body
