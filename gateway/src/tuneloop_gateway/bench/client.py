"""One streamed request, timed event by event. Never retries: a failed request is a result, not an accident."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import orjson

from tuneloop_gateway.bench.prompts import Prompt
from tuneloop_gateway.bench.samples import Sample
from tuneloop_gateway.sse import EventReader

PATHS: Final = {"chat": "/chat/completions", "completions": "/completions"}
DONE: Final = b"[DONE]"
ERROR: Final = b'"error"'


@dataclass(frozen=True)
class Target:
    """Where and how to ask. ``url`` is the OpenAI base URL (ends in /v1); ``extra`` goes into every body."""

    url: str
    model: str
    operation: str = "chat"
    key: str = field(default="", repr=False)
    max_tokens: int = 128
    timeout: float = 600.0  # seconds a request may take in all
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """The URL that is posted to."""
        return self.url.rstrip("/") + PATHS[self.operation]

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})

    def body(self, prompt: Prompt) -> bytes:
        """The request as JSON; usage is asked for, since only the server knows how many tokens an event holds."""
        words: dict[str, Any] = {"messages": prompt.as_chat()} if self.operation == "chat" else {}
        limit = {"max_tokens": prompt.max_tokens or self.max_tokens}
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        text = {} if words else {"prompt": prompt.as_text()}
        return orjson.dumps({"model": self.model, **words, **text, **limit, **stream, **self.extra})


class Stopwatch:
    """Times of one answer's events; ``start`` is when the request was sent, of ``time.perf_counter``."""

    def __init__(self, start: float) -> None:
        self._start = start
        self._first = self._last = 0.0
        self._itl: list[float] = []
        self._reader = EventReader(drop_usage=False)
        self._done = self._failed = False

    def feed(self, data: bytes, now: float) -> None:
        """What came at ``now``."""
        outputs = self._reader.feed(data)[1]
        self._done = self._done or DONE in data
        self._failed = self._failed or (not outputs and ERROR in data)
        if not outputs:
            return
        if self._first:
            self._itl.append(now - self._last)
        else:
            self._first = now
        self._itl += [0.0] * (outputs - 1)  # they came in one piece
        self._last = now

    def sample(self, planned: float, sent: float) -> Sample:
        """The measured request, once its stream has ended."""
        usage = self._reader.usage
        tokens = usage.completion if usage else len(self._itl) + bool(self._first)
        return Sample(
            planned=planned,
            sent=sent,
            ttft=self._first - self._start if self._first else 0.0,
            tpot=(self._last - self._first) / (tokens - 1) if tokens > 1 else None,
            itl=tuple(self._itl),
            e2e=max(0.0, self._last - self._start) if self._first else 0.0,
            prompt_tokens=usage.prompt if usage else 0,
            output_tokens=tokens,
            error=self._error(),
        )

    def _error(self) -> str:
        if self._failed:
            return "error event in the stream"
        if not self._first:
            return "no output"
        return "" if self._done else "stream ended early"


async def ask(session: aiohttp.ClientSession, target: Target, prompt: Prompt, planned: float, began: float) -> Sample:
    """Send one request and time its answer; ``began`` is the run's start by ``time.perf_counter``."""
    body = target.body(prompt)
    start = time.perf_counter()
    watch = Stopwatch(start)
    try:
        async with session.post(target.address, data=body, headers=target.headers) as answer:
            if answer.status != 200:
                return _failed(planned, start - began, await _words(answer))
            async for data in answer.content.iter_any():
                watch.feed(data, time.perf_counter())
    except TimeoutError:
        return _failed(planned, start - began, f"no whole answer within {target.timeout:g} s")
    except aiohttp.ClientError as error:
        return _failed(planned, start - began, f"connection: {type(error).__name__}")
    return watch.sample(planned, start - began)


def _failed(planned: float, sent: float, error: str) -> Sample:
    return Sample(planned=planned, sent=sent, error=error)


async def _words(answer: aiohttp.ClientResponse) -> str:
    """The status and the error's code: few different words, so that failures can be counted by kind."""
    try:
        found = orjson.loads(await answer.read())
        error = found.get("error", {})
        code = error.get("code") or error.get("type") or ""
    except (orjson.JSONDecodeError, AttributeError):
        code = ""
    return f"HTTP {answer.status} {code}".strip()
