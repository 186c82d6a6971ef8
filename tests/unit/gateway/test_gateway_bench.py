"""tuneloop-bench: its arithmetic, its schedule, its search, and whole runs against a server that streams."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tuneloop_gateway.bench import arrivals, cli, plot, prompts, report, slo, sweep
from tuneloop_gateway.bench.client import Stopwatch, Target
from tuneloop_gateway.bench.load import run
from tuneloop_gateway.bench.prompts import Prompt
from tuneloop_gateway.bench.samples import Sample, percentile, summarise
from tuneloop_gateway.bench.sweep import Trial

# ---- arithmetic ----


def event(content: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": content}}]}).encode() + b"\n\n"


USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}\n\n'
DONE = b"data: [DONE]\n\n"


def test_a_stream_is_timed_by_its_events_with_output() -> None:
    watch = Stopwatch(start=10.0)
    role = b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
    for at, data in [
        (10.1, role),  # no output yet
        (10.5, event("a")),
        (10.7, event("b") + event("c")),  # two in one piece
        (11.0, event("d")[:20]),  # half an event is none
        (11.1, event("d")[20:] + USAGE + DONE),
    ]:
        watch.feed(data, at)
    sample = watch.sample(planned=0.25, sent=0.5)
    assert sample.error == ""
    assert sample.ttft == pytest.approx(0.5)
    assert sample.itl == pytest.approx((0.2, 0.0, 0.4))
    assert sample.e2e == pytest.approx(1.1)
    assert sample.tpot == pytest.approx(0.6 / 4), "five tokens by the server's count, whatever the events"
    assert (sample.prompt_tokens, sample.output_tokens) == (7, 5)
    assert sample.lag == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (DONE, "no output"),
        (event("a"), "stream ended early"),
        (event("a") + b'data: {"error": {"message": "gone"}}\n\n', "error event in the stream"),
        (event('they said "error" and [DONE]') + DONE, ""),
    ],
)
def test_a_stream_that_failed_is_an_error(stream: bytes, error: str) -> None:
    watch = Stopwatch(0.0)
    for part in stream.split(b"\n\n")[:-1]:
        watch.feed(part + b"\n\n", 1.0)
    assert watch.sample(0.0, 0.0).error == error


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 2.5), (0.95, 3.85), (1.0, 4.0)])
def test_percentiles_are_numpys(share: float, expected: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], share) == pytest.approx(expected)


def test_goodput_counts_failures_against_the_server() -> None:
    fast = Sample(0.0, 0.0, ttft=0.1, tpot=0.01, e2e=1.0, output_tokens=10)
    slow = Sample(0.0, 0.0, ttft=0.9, tpot=0.01, e2e=2.0, output_tokens=10)
    single = Sample(0.0, 1.0, ttft=0.1, tpot=None, e2e=0.1, output_tokens=1)
    failed = Sample(0.0, 0.0, error="HTTP 500")
    found = summarise([fast, slow, single, failed], {"ttft": 0.5, "tpot": 0.05})
    assert (found.requests, found.succeeded, found.errors) == (4, 3, {"HTTP 500": 1})
    assert found.slo_attainment == 0.5
    assert found.goodput == pytest.approx(2 / 2.0)
    assert found.output_token_rate == pytest.approx(21 / 2.0)
    assert found.metrics["tpot"].count == 2, "one token has no time per output token"


def test_without_objectives_there_is_no_goodput() -> None:
    found = summarise([Sample(0.0, 0.0, ttft=0.1, e2e=0.2)], {})
    assert (found.goodput, found.slo_attainment) == (None, None)


# ---- options ----


def test_objectives_are_read() -> None:
    assert slo.parse("ttft=500ms, tpot=50ms,e2e=1m") == {"ttft": 0.5, "tpot": 0.05, "e2e": 60.0}
    assert slo.parse("") == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ttft", "is no time"),
        ("ttft=fast", "'fast' is no time"),
        ("latency=1s", "metric of ttft, tpot, e2e"),
        ("ttft=1s,ttft=2s", "named twice"),
        ("ttft=0s", "above 0"),
    ],
)
def test_wrong_objectives(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        slo.parse(text)


def test_arrivals_keep_the_rate_and_hang_on_the_seed_only() -> None:
    first = arrivals.schedule(200, 4.0, "poisson", seed=1)
    assert first == sorted(first) == arrivals.schedule(200, 4.0, "poisson", seed=1)
    assert first != arrivals.schedule(200, 4.0, "poisson", seed=2)
    assert first[-1] == pytest.approx(50.0)
    assert arrivals.schedule(3, 2.0, "constant", seed=1) == [0.5, 1.0, 1.5]
    assert arrivals.schedule(2, math.inf, "poisson", seed=1) == [0.0, 0.0]
    with pytest.raises(ValueError, match="above 0"):
        arrivals.schedule(2, 0.0, "poisson", seed=1)


def test_prompts_of_a_file(tmp_path: Path) -> None:
    chat = tmp_path / "chat.jsonl"
    chat.write_text('{"prompt": "Hi", "max_tokens": 3}\n\n{"messages": [{"role": "user", "content": "Ho"}]}\n')
    first, second = prompts.read(chat)
    assert (first.as_text(), first.max_tokens) == ("Hi", 3)
    assert second.as_chat() == [{"role": "user", "content": "Ho"}]
    plain = tmp_path / "lines.txt"
    plain.write_text("one\ntwo\n")
    assert [each.as_text() for each in prompts.repeated(prompts.read(plain), 5, seed=0)].count("one") in (2, 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"prompt": "a"}\nnot json\n', "line 2: not JSON"),
        ('["a"]', "line 1: not an object"),
        ('{"question": "a"}', 'neither "prompt"'),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens is 0"),
        ("\n\n", "holds no prompt"),
    ],
)
def test_wrong_prompts_name_the_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match=says):
        prompts.read(file)


def test_made_up_prompts_differ_from_the_first_words_on() -> None:
    made = prompts.synthetic(20, 30, seed=1)
    assert len({each.as_text()[:60] for each in made}) == 20
    assert {len(each.as_text().split()) for each in made} == {30}


# ---- the search ----


@pytest.mark.parametrize("capacity", [0.3, 1.0, 3.7, 40.0, 99.0])
def test_the_sweep_finds_the_capacity(capacity: float) -> None:
    trials: list[Trial] = []
    while (rate := sweep.next_rate(trials, first=1.0, highest=1000.0)) is not None:
        trials.append(Trial(rate, met=rate <= capacity))
        assert len(trials) < 30, "the search does not end"
    found = sweep.best(trials)
    assert found is not None
    assert capacity / (1 + sweep.PRECISION) <= found <= capacity


def test_the_sweep_ends_at_the_highest_rate_and_where_nothing_holds() -> None:
    assert sweep.next_rate([Trial(4.0, True)], first=1.0, highest=4.0) is None
    assert sweep.next_rate([Trial(0.015, False)], first=1.0, highest=4.0) is None
    assert sweep.best([Trial(1.0, False)]) is None


def test_a_lucky_run_above_a_failed_one_does_not_count() -> None:
    assert sweep.best([Trial(1.0, True), Trial(2.0, False), Trial(4.0, True)]) == 1.0


# ---- whole runs ----

Answer = Callable[[web.Request, dict[str, Any]], Any]


async def streamed(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(request)
    for number in range(body["max_tokens"]):
        await asyncio.sleep(0.001)
        await answer.write(event(f"w{number}"))
    usage = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": body["max_tokens"]}}
    await answer.write(b"data: " + json.dumps(usage).encode() + b"\n\n" + DONE)
    return answer


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """An endpoint on loopback; yields its base URL and the bodies that it got."""
    seen: list[dict[str, Any]] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        seen.append(body | {"path": request.path, "key": request.headers.get("Authorization")})
        response: web.StreamResponse = await answer(request, body)
        return response

    application = web.Application()
    application.router.add_post("/ns/v1/{tail:.*}", handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)  # one of them never answers
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/ns/v1", seen
    finally:
        await runner.cleanup()


async def test_a_run_measures_every_request_in_order() -> None:
    async with server(streamed) as (url, seen):
        target = Target(url, "bot", key="tl-secret", max_tokens=6)
        samples = await run(target, [Prompt("a"), Prompt("b", max_tokens=2)], [0.0, 0.01], concurrency=1)
    assert [sample.output_tokens for sample in samples] == [6, 2]
    assert all(not sample.error and 0 < sample.ttft <= sample.e2e for sample in samples)
    assert seen[0]["path"] == "/ns/v1/chat/completions"
    assert seen[0]["key"] == "Bearer tl-secret"
    assert seen[0]["stream_options"] == {"include_usage": True}
    assert "tl-secret" not in repr(target)


async def test_refusals_are_counted_by_kind_and_nothing_is_retried() -> None:
    async def refuse(request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": {"message": "no", "code": "model_not_found"}}, status=404)

    async with server(refuse) as (url, seen):
        samples = await run(Target(url, "bot", "completions"), [Prompt("a")] * 3, [0.0] * 3)
    assert summarise(samples, {}).errors == {"HTTP 404 model_not_found": 3}
    assert len(seen) == 3
    assert seen[0]["prompt"] == "a"


async def test_a_server_that_is_not_there_and_one_that_never_ends() -> None:
    async def hang(request: web.Request, body: dict[str, Any]) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    async with server(hang) as (url, _):
        slow = await run(Target(url, "bot", timeout=0.2), [Prompt("a")], [0.0])
    gone = await run(Target(url, "bot"), [Prompt("a")], [0.0])
    assert slow[0].error == "no whole answer within 0.2 s"
    assert gone[0].error == "connection: ClientConnectorError"


async def test_the_command_prints_writes_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cli.KEY_VARIABLE, "tl-secret")
    async with server(streamed) as (url, seen):
        words = [url, "--model", "bot", "--requests", "4", "--rate", "200", "--output-tokens", "3", "--ignore-eos"]
        files = ["--json", str(tmp_path / "run.json"), "--plot", str(tmp_path / "run.html")]
        code = await asyncio.to_thread(cli.main, [*words, *files, "--slo", "ttft=10s,tpot=10s"])
    assert code == 0
    said = capsys.readouterr().out
    assert "4 of 4 requests succeeded" in said
    assert "100.0% met ttft 10000ms, tpot 10000ms" in said
    found = json.loads((tmp_path / "run.json").read_text())
    assert len(found["requests"]) == 4
    assert found["summary"]["metrics"]["ttft"]["percentiles"].keys() == {"50", "90", "95", "99"}
    assert all(body["ignore_eos"] for body in seen)
    page = (tmp_path / "run.html").read_text()
    assert "<svg" in page
    assert "<script" not in page
    assert "tl-secret" not in said + page + (tmp_path / "run.json").read_text()


async def test_the_sweep_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with server(streamed) as (url, _):
        words = [url, "--model", "bot", "--requests", "2", "--rate", "100", "--highest", "200", "--output-tokens", "2"]
        files = ["--json", str(tmp_path / "sweep.json"), "--plot", str(tmp_path / "sweep.png")]
        code = await asyncio.to_thread(cli.main, [*words, *files, "--sweep", "--slo", "e2e=20s"])
    assert code == 0
    assert "highest rate within the objectives: 200.00 requests/s" in capsys.readouterr().out
    assert [each["rate"] for each in json.loads((tmp_path / "sweep.json").read_text())["runs"]] == [100, 200]
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sweep"], "give one, such as ttft=500ms"),
        (["--plot", "x.pdf"], "write .png, .svg or .html"),
        (["--requests", "0"], "--requests is 0"),
        (["--attainment", "2"], "a share above 0"),
        (["--key-file", "/does/not/exist"], "--key-file"),
        (["--warm-up", "1", "--requests", "1"], "the first request failed: connection"),
    ],
)
def test_wrong_options_are_told(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["http://127.0.0.1:9/v1", "--model", "bot", *options]) == 2
    assert says in capsys.readouterr().err


def test_a_generator_that_is_late_says_so() -> None:
    found = summarise([Sample(planned=0.0, sent=1.0, ttft=0.1, e2e=0.2)], {})
    assert "late (p99)" in report.table(found, {})


def test_plots_of_nothing_do_not_fail() -> None:
    assert plot.draw_run([Sample(0.0, 0.0, error="HTTP 500")], {"ttft": 1.0}) is not None
