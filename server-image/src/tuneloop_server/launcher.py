"""One pod's life: listen at once, start the engine, become ready, serve, drain, leave.

The port is open from the first second, so that health and status can say what the start is busy with. Exit codes: 0
after SIGTERM, 1 when the engine could not start or died; the reason goes to the termination log for the operator.
"""

import asyncio
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import uvicorn

from tuneloop_core.constants import TERMINATION_LOG
from tuneloop_server.adapters import Adapters
from tuneloop_server.app import ServerApp, State
from tuneloop_server.engine import Engine, EngineStart
from tuneloop_server.errors import StartError
from tuneloop_server.guard import Guard
from tuneloop_server.modelfolder import ModelFacts
from tuneloop_server.phases import Phases
from tuneloop_server.settings import Settings
from tuneloop_server.tokens import KeyFile

log = logging.getLogger(__name__)

TICK_SECONDS: Final = 0.1
HEADER_LIMIT: Final = 64 << 10  # bytes of request line and headers


class Server(uvicorn.Server):
    """uvicorn without its own signal handlers: leaving is decided here, after the drain."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Install nothing."""
        yield


class Launcher:
    """Ties the parts together; ``run`` returns the exit code."""

    def __init__(self, settings: Settings, model: ModelFacts, start: EngineStart, phases: Phases) -> None:
        self._settings = settings
        self._start = start
        file, lora = settings.folder / "adapters.json", settings.engine.lora
        self._adapters = Adapters(file, settings.artifacts, lora, model)
        self._state = State(settings.server.served_name, self._adapters, phases, model.task)
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Serve until SIGTERM or a failure."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        async with self._listening():
            life = asyncio.create_task(self._life())
            stopped = asyncio.create_task(self._stop.wait())
            await asyncio.wait([life, stopped], return_when=asyncio.FIRST_COMPLETED)
            if life.done():
                return life.result()
            await self._drain()
            life.cancel()
            await asyncio.wait([life], timeout=self._settings.grace_seconds)
        return 0

    async def _life(self) -> int:
        """Start, become ready, watch. Ends by itself only with a failure."""
        try:
            client, arguments = await _in_thread(self._start.build)
            async with self._start.running(client, arguments) as engine:
                try:
                    await self._serve(engine)
                finally:
                    await asyncio.to_thread(engine.shutdown)
        except StartError as error:
            return _failure(str(error))
        except Exception as error:
            log.exception("the engine failed")
            return _failure(f"the engine failed: {type(error).__name__}: {error}; the log says more")
        return 0

    async def _serve(self, engine: Engine) -> None:
        with self._state.phases.phase("warmUp"):
            await engine.answer_once()
        self._state.engine_failed = lambda: engine.failed
        self._state.engine_app = engine.app
        self._adapters.attach(engine)
        rounds = asyncio.create_task(self._adapters.run())
        try:
            with self._state.phases.phase("adapters"):
                await _until(lambda: self._adapters.settled or rounds.done())
            self._state.phases.finish()
            self._state.ready = True
            log.info("ready: %s", self._state.phases.seconds())
            await _until(lambda: engine.failed or rounds.done())
        finally:
            rounds.cancel()
        if rounds.done() and not rounds.cancelled():
            rounds.result()
        raise RuntimeError("the engine core died")

    async def _drain(self) -> None:
        """Unhealthy at once, but still answering; leave when calm, or when the grace is over."""
        self._state.draining = True
        log.info("draining: %d requests in flight", self._state.in_flight)
        now = time.monotonic()
        calm_from = now + (self._settings.settle_seconds if self._state.ready else 0)
        deadline = now + self._settings.grace_seconds
        await _until(lambda: _calm(self._state.in_flight, calm_from) or time.monotonic() >= deadline)
        log.info("drained: %d requests in flight", self._state.in_flight)

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[None]:
        guard = Guard(ServerApp(self._state), KeyFile(self._settings.folder / "guard.json"))
        config = uvicorn.Config(
            guard,
            host="",
            port=self._settings.port,
            lifespan="off",
            ws="none",
            access_log=False,
            server_header=False,
            log_level="warning",
            timeout_keep_alive=75,
            timeout_graceful_shutdown=5,
            h11_max_incomplete_event_size=HEADER_LIMIT,
        )
        server = Server(config)
        task = asyncio.create_task(server.serve())
        try:
            yield
        finally:
            server.should_exit = True
            await task


def _calm(in_flight: int, calm_from: float) -> bool:
    return in_flight == 0 and time.monotonic() >= calm_from


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - conditions of other parts, which know no events
        await asyncio.sleep(TICK_SECONDS)


async def _in_thread(function: Callable[[], Any]) -> Any:
    """Like asyncio.to_thread, but a daemon thread: SIGTERM during a start must not wait for the start."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(setter: Callable[[Any], None], value: Any) -> None:
        loop.call_soon_threadsafe(lambda: None if future.done() else setter(value))

    def work() -> None:
        try:
            settle(future.set_result, function())
        except BaseException as error:
            settle(future.set_exception, error)

    threading.Thread(target=work, name="engine-start", daemon=True).start()
    return await future


def _failure(message: str) -> int:
    log.error("%s", message)
    report_failure(message)
    return 1


def report_failure(message: str) -> None:
    """Leave the reason where Kubernetes shows it; elsewhere there is no such file, and that is fine."""
    path = Path(TERMINATION_LOG)
    if path.exists():
        path.write_text(message[:1024])


def leave(code: int) -> None:
    """End this process and whatever the engine left running, without waiting for anything."""
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
