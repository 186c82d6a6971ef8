"""The clients of the benchmark: many streams or many short requests against one proxy, every answer checked.

Runs as its own process, so that its CPU time is not the proxy's. Never retries: a failed stream is a failed stream.
"""

import argparse
import asyncio
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import httptools
import uvloop


@dataclass
class Tally:
    """What happened, seconds."""

    ok: int = 0
    failed: list[str] = field(default_factory=list)
    chunks: int = 0
    first: list[float] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)  # times to the first token of requests sent meanwhile
    gaps: list[float] = field(default_factory=list)  # between events with output, of the paced streams

    def report(self) -> dict[str, object]:
        """As JSON has it; of the gaps, of which there may be a hundred thousand, only percentiles."""
        parts = statistics.quantiles(self.gaps, n=100) if len(self.gaps) > 1 else []
        return self.__dict__ | {"gaps": {"p50": parts[49], "p99": parts[98]} if parts else {}}


class Client(asyncio.Protocol):
    """One connection; ``ask`` sends a request and waits for the whole answer."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.waiter: asyncio.Future[None] | None = None
        self.tail = b""
        self.events = 0
        self.size = 0
        self.first = 0.0
        self.last = 0.0
        self.gaps: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are not subclasses

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side left."""
        if self.waiter and not self.waiter.done():
            self.waiter.set_exception(ConnectionError(f"connection lost: {exc}"))

    def data_received(self, data: bytes) -> None:
        """Parse."""
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """A piece of the body came."""
        if b'"content":" ' in body:
            now = time.perf_counter()
            if self.first:
                self.gaps.append(now - self.last)
            else:
                self.first = now
            self.last = now
        self.events += body.count(b"data: ")
        self.size += len(body)
        self.tail = body[-16:]

    def on_message_complete(self) -> None:
        """The message is whole."""
        if self.waiter and not self.waiter.done():
            self.waiter.set_result(None)

    async def ask(self, request: bytes) -> int:
        """Send, wait, return the status code."""
        self.events = self.size = 0
        self.first, self.tail = 0.0, b""
        self.gaps.clear()
        self.waiter = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        await asyncio.wait_for(self.waiter, 120)
        return int(self.parser.get_status_code())


def request(path: str, host: str, key: str, body: dict[str, object]) -> bytes:
    """One POST as bytes."""
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\nuser-agent: bench\r\naccept: application/json\r\n"
        f"content-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def connect(port: int) -> Client:
    """A new connection."""
    _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
    return client


async def one_stream(port: int, ask: bytes, tokens: int, delay: float, tally: Tally) -> None:
    """One paced stream on its own connection."""
    await asyncio.sleep(delay)
    try:
        client = await connect(port)
        start = time.perf_counter()
        status = await client.ask(ask)
        whole = status == 200 and client.tail.endswith(b"data: [DONE]\n\n") and client.events == tokens + 3
        if not whole:
            raise ConnectionError(f"status {status}, {client.events} events of {tokens + 3}")
        tally.ok += 1
        tally.first.append(client.first - start)
        client.transport.close()
        tally.chunks += client.events
        tally.gaps += client.gaps
    except (OSError, TimeoutError) as error:
        tally.failed.append(f"{type(error).__name__}: {error}")


async def one_worker(port: int, ask: bytes, count: int, tally: Tally) -> None:
    """Short requests one after the other on one kept connection."""
    client = await connect(port)
    for _ in range(count):
        start = time.perf_counter()
        status = await client.ask(ask)
        if status == 200 and client.size > 100:
            tally.ok += 1
            tally.first.append(time.perf_counter() - start)
        else:
            tally.failed.append(f"status {status}")
    client.transport.close()


async def one_asker(port: int, ask: bytes, count: int, tally: Tally) -> None:
    """Short streams one after the other on one kept connection; the time to the first token is what counts."""
    client = await connect(port)
    for _ in range(count):
        start = time.perf_counter()
        status = await client.ask(ask)
        if status == 200 and client.first:
            tally.ok += 1
            tally.first.append(client.first - start)
        else:
            tally.failed.append(f"status {status}")
    client.transport.close()


async def probe(port: int, ask: bytes, options: argparse.Namespace, tally: Tally) -> None:
    """Short streams, evenly spread over the time that all paced ones run; each on a kept connection."""
    await asyncio.sleep(options.ramp)
    pause = (options.tokens * options.interval - options.ramp) / options.probes
    client = await connect(port)
    for _ in range(options.probes):
        start = time.perf_counter()
        status = await client.ask(ask)
        if status != 200 or not client.first:
            tally.failed.append(f"probe: status {status}")
        else:
            tally.probes.append(client.first - start)
            tally.chunks += client.events
        await asyncio.sleep(max(0.0, start + pause - time.perf_counter()))
    client.transport.close()


async def run(options: argparse.Namespace) -> Tally:
    """All of them side by side."""
    tally = Tally()
    message = {"role": "user", "content": "What does the field spec.completions of a Job do?"}
    body: dict[str, object] = {"model": "model", "messages": [message], "max_tokens": options.tokens}
    if options.mode == "streams":
        body |= {"stream": True, "interval": options.interval}
        ask = request(options.path, "127.0.0.1", options.key, body)
        spread = options.ramp / options.count
        jobs = [one_stream(options.port, ask, options.tokens, i * spread, tally) for i in range(options.count)]
        if options.probes:
            short = request(options.path, "127.0.0.1", options.key, body | {"interval": 0, "max_tokens": 2})
            jobs.append(probe(options.port, short, options, tally))
    elif options.mode == "ttft":
        ask = request(options.path, "127.0.0.1", options.key, body | {"stream": True, "interval": 0, "max_tokens": 2})
        each = options.count // options.connections
        jobs = [one_asker(options.port, ask, each, tally) for _ in range(options.connections)]
    else:
        ask = request(options.path, "127.0.0.1", options.key, body)
        each = options.count // options.connections
        jobs = [one_worker(options.port, ask, each, tally) for _ in range(options.connections)]
    await asyncio.gather(*jobs)
    return tally


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["streams", "requests", "ttft"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--interval", type=float, default=0.04)
    parser.add_argument("--probes", type=int, default=0)
    parser.add_argument("--ramp", type=float, default=1.0)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    result = uvloop.run(run(chosen))
    chosen.out.write_text(json.dumps(result.report()))
