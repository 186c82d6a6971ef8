"""What most Python routers for language models are: Starlette, httpx and uvicorn. For comparison only.

Runs in the peers' environment. No keys, no limits, no measuring: it passes bodies on, and chunks as they come.
"""

import argparse
import contextlib
from collections.abc import AsyncIterator

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=1024)


def application(upstream: int) -> Starlette:
    """POSTs to the same path of the upstream."""
    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{upstream}", timeout=None, limits=LIMITS)

    async def forward(request: Request) -> Response:
        sent = client.build_request(
            "POST", request.url.path, content=await request.body(), headers={"content-type": "application/json"}
        )
        answer = await client.send(sent, stream=True)
        kept = {"content-type": answer.headers["content-type"]}
        done = BackgroundTask(answer.aclose)
        return StreamingResponse(answer.aiter_raw(), answer.status_code, kept, background=done)

    @contextlib.asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    return Starlette(routes=[Route("/{path:path}", forward, methods=["POST"])], lifespan=life)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", type=int, required=True)
    options = parser.parse_args()
    uvicorn.run(
        application(options.upstream),
        port=options.port,
        log_level="error",
        access_log=False,
        backlog=4096,
        loop="uvloop",
    )
