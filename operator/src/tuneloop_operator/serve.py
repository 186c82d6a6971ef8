"""The operator's own HTTP: liveness, readiness and metrics. Never shows an object and takes no input."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

from tuneloop_operator import metrics
from tuneloop_operator.reconcile.heartbeat import Heartbeat


@contextlib.asynccontextmanager
async def serve(heartbeat: Heartbeat, liveness_port: int, metrics_port: int) -> AsyncIterator[None]:
    """Serve on both ports while the block runs; OSError where a port is taken."""

    async def healthz(_: web.Request) -> web.Response:
        if heartbeat.frozen():
            return web.Response(status=500, text=f"no watch event of our own Lease for {heartbeat.age():.0f} s\n")
        return web.Response(text="ok\n")

    async def exposition(_: web.Request) -> web.Response:
        heartbeat.age()
        return web.Response(body=metrics.exposition(), headers={"Content-Type": "text/plain; version=0.0.4"})

    health = await _listen({"/healthz": healthz, "/readyz": healthz}, liveness_port)
    numbers = await _listen({"/metrics": exposition}, metrics_port)
    try:
        yield
    finally:
        await health.cleanup()
        await numbers.cleanup()


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def _listen(routes: dict[str, Handler], port: int) -> web.AppRunner:
    app = web.Application()
    app.add_routes([web.get(path, handler) for path, handler in routes.items()])
    runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, None, port).start()
    return runner
