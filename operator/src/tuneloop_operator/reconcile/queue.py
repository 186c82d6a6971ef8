"""A queue of keys: each key is in it once, one worker works on a key at a time, failures come back with backoff.

What happened to an object is never queued, only that it should be looked at again; so a missed, doubled or reordered
event changes nothing. Never knows what a key means.
"""

import asyncio
import heapq
import itertools
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

from tuneloop_operator import metrics
from tuneloop_operator.names import Key

logger = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 0.2
MAX_BACKOFF_SECONDS = 60.0

Process = Callable[[Key], Awaitable[float | None]]
"""Works on a key; returns after how many seconds to look again, or None."""


class KeyedQueue:
    """``workers`` concurrent workers over one set of keys."""

    def __init__(self, process: Process, workers: int = 16) -> None:
        self._process, self._count = process, workers
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: set[Key] = set()  # in _ready
        self._working: set[Key] = set()
        self._again: set[Key] = set()  # came up while being worked on
        self._failures: dict[Key, int] = {}
        self._due: dict[Key, float] = {}  # the one valid delayed add of a key
        self._heap: list[tuple[float, int, Key]] = []
        self._counter = itertools.count()
        self._alarm = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the workers; needs a running loop."""
        self._tasks = [asyncio.create_task(self._work(), name=f"worker {n}") for n in range(self._count)]
        self._tasks.append(asyncio.create_task(self._keep_time(), name="delayed keys"))

    async def stop(self, grace: float = 5.0) -> None:
        """Let what is being worked on end within ``grace`` seconds; the rest is cancelled."""
        self._waiting.clear()
        while not self._ready.empty():
            self._ready.get_nowait()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._idle.wait()
        await cancel(*self._tasks)

    def add(self, key: Key) -> None:
        """Look at this key as soon as a worker is free."""
        self._due.pop(key, None)
        if key in self._working:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.put_nowait(key)
            metrics.QUEUE_DEPTH.set(len(self._waiting))

    def add_after(self, key: Key, seconds: float) -> None:
        """Look at this key after ``seconds``, or earlier where an earlier look is due."""
        due = asyncio.get_running_loop().time() + seconds
        if key in self._waiting or self._due.get(key, float("inf")) <= due:
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, next(self._counter), key))
        self._alarm.set()

    async def _work(self) -> None:
        while True:
            key = await self._ready.get()
            self._waiting.discard(key)
            self._working.add(key)
            self._idle.clear()
            metrics.QUEUE_DEPTH.set(len(self._waiting))
            try:
                await self._once(key)
            finally:
                self._working.discard(key)
                if not self._working:
                    self._idle.set()
                if key in self._again:
                    self._again.discard(key)
                    self.add(key)

    async def _once(self, key: Key) -> None:
        try:
            delay = await self._process(key)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._failed(key, error)
        else:
            self._failures.pop(key, None)
            if delay is not None:
                self.add_after(key, delay)

    def _failed(self, key: Key, error: Exception) -> None:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        wait = backoff(failures, random.random())  # noqa: S311
        metrics.ERRORS.labels("reconcile").inc()
        unexpected = not getattr(error, "expected", False)
        logger.warning(
            "%s: try %d again in %.1f s: %s: %s",
            key,
            failures,
            wait,
            type(error).__name__,
            error,
            exc_info=error if unexpected else None,
        )
        self._due.pop(key, None)
        self.add_after(key, wait)

    async def _keep_time(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._alarm.clear()
            wait = self._heap[0][0] - loop.time() if self._heap else None
            if wait is None or wait > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):  # not wait_for: in Python 3.11 it may swallow a cancellation
                        await self._alarm.wait()
                continue
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                self.add(key)


async def cancel(*tasks: "asyncio.Task[None]", patience: float = 2.0) -> None:
    """Cancel tasks and wait until they have ended, but not for ever."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=patience)


def backoff(failures: int, spread: float) -> float:
    """Seconds before try ``failures + 1``: doubling from 0.2 s to 60 s, ± a quarter by ``spread`` in [0, 1)."""
    full = min(FIRST_BACKOFF_SECONDS * 2.0 ** min(failures - 1, 20), MAX_BACKOFF_SECONDS)
    return full * (0.75 + spread / 2)
