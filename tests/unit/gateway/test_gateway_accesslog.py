"""The access log makes no request wait: a pipe that nobody reads costs lines, which are counted, and nothing else."""

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator

import gateway_world as world
import pytest
from gateway_world import order, until
from openai import AsyncOpenAI
from prometheus_client import CollectorRegistry

from tuneloop_gateway.accesslog import LINES_LIMIT, AccessLog

DROPPED = "tuneloop_gateway_access_log_dropped_lines_total"


def fill(descriptor: int) -> None:
    """Write until a pipe takes no more."""
    os.set_blocking(descriptor, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(descriptor, b"x" * 4096)
    os.set_blocking(descriptor, True)


def dropped(log: AccessLog) -> float | None:
    registry = CollectorRegistry()
    registry.register(log)
    return registry.get_sample_value(DROPPED)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Its reading and its writing end."""
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


async def test_a_pipe_that_nobody_reads_stops_no_request(
    openai: AsyncOpenAI, team: world.World, pipe: tuple[int, int]
) -> None:
    log = team.proxy.ledger.log = AccessLog(descriptor=pipe[1], limit=2000)
    fill(pipe[1])
    for _ in range(20):
        answer = await openai.chat.completions.create(model="qa", messages=order(do="answer"))
        assert answer.choices[0].message.content == "Paris."
        log.flush()
    assert 0 < log.dropped < 20
    assert dropped(log) == log.dropped
    assert not log.finish(0.01), "what was taken still waits for the reader"
    os.set_blocking(pipe[0], False)
    lines = bytearray()

    def read() -> bool:
        with contextlib.suppress(BlockingIOError):
            lines.extend(os.read(pipe[0], 65536))
        return log.finish(0.01)

    await until(read, "the lines that were taken to be written once somebody reads")
    read()
    assert len(lines.lstrip(b"x").splitlines()) == 20 - log.dropped, "none is cut, none is doubled"
    assert all(json.loads(line)["status"] == 200 for line in lines.lstrip(b"x").splitlines())
    before = log.dropped
    await openai.chat.completions.create(model="qa", messages=order(do="answer"))
    assert log.finish(20)
    assert log.dropped == before, "there is room again"


def test_a_closed_pipe_costs_lines_only(pipe: tuple[int, int], caplog: pytest.LogCaptureFixture) -> None:
    log = AccessLog(descriptor=pipe[1])
    os.close(pipe[0])
    for _ in range(3):
        log.write({"status": 200})
        assert log.finish(20)
    assert log.dropped == 3
    assert [record.message for record in caplog.records] == ["the access log cannot be written; its lines are dropped"]


def test_a_pipe_that_does_not_block_gets_every_line(pipe: tuple[int, int]) -> None:
    """Whoever shares it may have set it so; the lines are more than it holds."""
    os.set_blocking(pipe[1], False)
    log, found = AccessLog(descriptor=pipe[1]), bytearray()
    for number in range(4 * LINES_LIMIT):
        log.write({"number": number, "pad": "x" * 200})
    log.flush()
    while found.count(b"\n") < 4 * LINES_LIMIT:
        found.extend(os.read(pipe[0], 65536))
    assert [json.loads(line)["number"] for line in found.splitlines()] == list(range(4 * LINES_LIMIT))
    assert log.finish(20)
    assert log.dropped == 0


async def test_the_end_of_a_process_does_not_wait_for_a_reader(team: world.World, pipe: tuple[int, int]) -> None:
    log = team.proxy.ledger.log = AccessLog(descriptor=pipe[1])
    fill(pipe[1])
    log.write({"status": 200})
    await asyncio.wait_for(asyncio.to_thread(team.proxy.close), 60)
    os.read(pipe[0], 1 << 20)
    assert log.finish(20)


def test_switched_off_nothing_is_counted() -> None:
    log = AccessLog(enabled=False)
    log.write({"status": 200})
    assert log.finish()
    assert dropped(log) == 0
