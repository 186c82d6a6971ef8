"""Runs a load: every request is sent at its planned time, whatever became of those before it."""

import asyncio
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import aiohttp

from tuneloop_gateway.bench.client import Target, ask
from tuneloop_gateway.bench.prompts import Prompt
from tuneloop_gateway.bench.samples import Sample

Tell = Callable[[int], None]  # requests that have ended


async def run(
    target: Target, prompts: Sequence[Prompt], offsets: Sequence[float], concurrency: int = 0, tell: Tell | None = None
) -> list[Sample]:
    """Send prompt n at ``offsets[n]`` seconds after the start; returns the samples in that order.

    ``concurrency`` bounds the requests under way (0: no bound); what waits for its turn counts as sent late, not as
    slow. ``tell`` hears how many have ended.
    """
    gate = asyncio.Semaphore(concurrency) if concurrency else nullcontext()
    ended = 0

    async def one(prompt: Prompt, planned: float) -> Sample:
        nonlocal ended
        await asyncio.sleep(began + planned - time.perf_counter())
        async with gate:
            sample = await ask(session, target, prompt, planned, began)
        ended += 1
        if tell:
            tell(ended)
        return sample

    timeout = aiohttp.ClientTimeout(total=target.timeout)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        with _no_collector():
            began = time.perf_counter()
            pairs = zip(prompts, offsets, strict=True)
            return await asyncio.gather(*(one(prompt, offset) for prompt, offset in pairs))


@contextmanager
def _no_collector() -> Iterator[None]:
    """Python's garbage collector would stop all streams at once, and the server would get the blame."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
