"""A stand-in for a model server that costs next to nothing, so that what is measured is the proxy before it.

It answers like vLLM on the wire: one HTTP chunk a token, a usage chunk when asked, ``[DONE]``. Streams are paced, each
with its own phase, which is the hardest case for a proxy: no two chunks come in one wakeup. Also plays the API server
for the gateway: one ModelDeployment, one EndpointSlice, watches that stay silent; and says of itself what the peers ask
before they send to it. Never computes anything.
"""

import argparse
import asyncio
import json
import random
from collections.abc import Callable
from typing import Any, cast

import httptools
import uvloop

NAMESPACE = "bench"
MODEL = "model"

HEAD_JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
HEAD_SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
ANSWER = json.dumps(
    {
        "id": "chatcmpl-4f6c1d0f1f4e4d5c8c0d1a2b3c4d5e6f",
        "object": "chat.completion",
        "created": 1795000000,
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Paris."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 24, "total_tokens": 27, "completion_tokens": 3},
    }
).encode()


def chunk(payload: bytes) -> bytes:
    """One SSE event as one HTTP chunk."""
    event = b"data: " + payload + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


def token_chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
    """A chat completion chunk as vLLM words it."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    body = {
        "id": "chatcmpl-4f6c1d0f1f4e4d5c8c0d1a2b3c4d5e6f",
        "object": "chat.completion.chunk",
        "created": 1795000000,
        "model": MODEL,
        "choices": [choice],
    }
    return chunk(json.dumps(body, separators=(",", ":")).encode())


ROLE = token_chunk({"role": "assistant", "content": ""})
TOKEN = token_chunk({"content": " token"})
LAST = token_chunk({}, finish="stop")
DONE = chunk(b"[DONE]")


def usage_chunk(tokens: int) -> bytes:
    """The chunk that ``include_usage`` adds."""
    usage = {"prompt_tokens": 24, "total_tokens": 24 + tokens, "completion_tokens": tokens}
    return chunk(json.dumps({"id": "chatcmpl-4f6c", "choices": [], "usage": usage}, separators=(",", ":")).encode())


class Server(asyncio.Protocol):
    """One connection; requests one after the other."""

    def __init__(self, resources: dict[str, Any]) -> None:
        self.resources = resources
        self.parser = httptools.HttpRequestParser(self)
        self.url = b""
        self.body = b""
        self.usage = False
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are not subclasses

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side left."""
        del exc
        if self.timer:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse."""
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        """A request starts."""
        self.url = self.body = b""

    def on_url(self, url: bytes) -> None:
        """A part of the URL."""
        self.url += url

    def on_body(self, body: bytes) -> None:
        """A piece of the body came."""
        self.body += body

    def on_message_complete(self) -> None:
        """The message is whole."""
        if self.url.startswith(b"/apis/"):
            return self.answer_list()
        if self.url.endswith(b"/token"):
            return self.answer_token()
        if not self.body:
            return self.answer_about()
        request = json.loads(self.body)
        if request.get("stream"):
            self.usage = bool((request.get("stream_options") or {}).get("include_usage"))
            return self.stream(int(request["max_tokens"]), float(request.get("interval", 0.04)))
        self.transport.write(HEAD_JSON % len(ANSWER) + ANSWER)
        return None

    def answer_about(self) -> None:
        """What routers ask a server about: its health and models."""
        models = {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "vllm", "root": MODEL}]}
        body = json.dumps(models if self.url.endswith(b"/models") else {"model_path": MODEL}).encode()
        self.transport.write(HEAD_JSON % len(body) + body)

    def answer_token(self) -> None:
        """A token towards this stand-in, of the length of a real one."""
        body = json.dumps({"spec": {"expirationSeconds": 3600}, "status": {"token": "t" * 1000}}).encode()
        self.transport.write(HEAD_JSON % len(body) + body)

    def answer_list(self) -> None:
        """Lists answer at once; watches stay open and silent."""
        path, _, query = self.url.partition(b"?")
        if b"watch=" in query:
            return self.transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
            )
        items = self.resources[path.rsplit(b"/", 1)[1].decode()]
        body = json.dumps({"metadata": {"resourceVersion": "1"}, "items": items}).encode()
        return self.transport.write(HEAD_JSON % len(body) + body)

    def stream(self, tokens: int, interval: float) -> None:
        """Start to stream."""
        self.transport.write(HEAD_SSE + ROLE)
        loop = asyncio.get_running_loop()
        start = loop.time() + random.random() * interval
        self.timer = loop.call_at(start, self.tick, loop.call_at, start, interval, tokens, tokens)

    def tick(self, call_at: Callable[..., asyncio.TimerHandle], at: float, gap: float, left: int, total: int) -> None:
        """Send one token, or the end."""
        if left:
            self.transport.write(TOKEN)
            self.timer = call_at(at + gap, self.tick, call_at, at + gap, gap, left - 1, total)
        else:
            self.transport.write(LAST + (usage_chunk(total) if self.usage else b"") + DONE + b"0\r\n\r\n")


def resources(port: int, key_hash: str) -> dict[str, Any]:
    """What the gateway's two watches find."""
    deployment = {
        "metadata": {
            "name": MODEL,
            "namespace": NAMESPACE,
            "uid": "u1",
            "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "model": {"uri": "hf://org/model"},
            "access": {
                "keys": [{"name": "bench", "hash": key_hash}],
                "limits": {"requestsPerMinute": 10_000_000, "tokensPerMinute": 1_000_000_000},  # on, and never reached
            },
        },
        "status": {},
    }
    labels = {"kubernetes.io/service-name": f"{MODEL}-server", "app.kubernetes.io/managed-by": "tuneloop"}
    slice_ = {
        "metadata": {
            "name": f"{MODEL}-server-x1",
            "namespace": NAMESPACE,
            "uid": "u2",
            "resourceVersion": "1",
            "labels": labels,
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": port}],
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": True}}],
    }
    return {"modeldeployments": [deployment], "endpointslices": [slice_]}


async def serve(port: int, server_port: int, key_hash: str) -> None:
    """Listen until killed."""
    loop = asyncio.get_running_loop()
    found = resources(server_port, key_hash)
    server = await loop.create_server(lambda: Server(found), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--key-hash", default="sha256:" + "0" * 64)
    parser.add_argument("--server", type=int, required=True, help="port of the server pod that the slice names")
    options = parser.parse_args()
    uvloop.run(serve(options.port, options.server, options.key_hash))
