"""The command line: measures TTFT, TPOT, ITL and end-to-end latency of an OpenAI-compatible endpoint under a load."""

import argparse
import asyncio
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import uvloop

from tuneloop_gateway.bench import arrivals, plot, prompts, report, slo, sweep
from tuneloop_gateway.bench.client import PATHS, Target
from tuneloop_gateway.bench.load import run
from tuneloop_gateway.bench.prompts import Prompt
from tuneloop_gateway.bench.samples import Sample, Summary, summarise

KEY_VARIABLE = "TUNELOOP_API_KEY"


def parser() -> argparse.ArgumentParser:
    """Every option, with its words."""
    made = argparse.ArgumentParser(prog="tuneloop-bench", description=__doc__.partition(": ")[2])
    add = made.add_argument
    add("url", help="OpenAI base URL, such as http://GATEWAY/NAMESPACE/v1")
    add("--model", required=True, help="model or adapter, as /v1/models lists it")
    add("--operation", choices=sorted(PATHS), default="chat", help="which endpoint (default chat)")
    add("--rate", type=float, default=math.inf, help="requests per second; without it all are sent at once")
    add("--requests", type=int, default=100, help="requests in all (of each run of a sweep; default 100)")
    add("--arrivals", choices=["poisson", "constant"], default="poisson", help="gaps between requests")
    add("--concurrency", type=int, default=0, help="requests under way at most; 0 is no bound")
    add("--warm-up", type=int, default=1, help="requests sent before, one by one, and not counted (default 1)")
    add("--prompts", type=Path, help="JSON Lines with prompt or messages, or a text file with a prompt a line")
    add("--input-tokens", type=int, default=256, help="without --prompts: length of made-up prompts (default 256)")
    add("--output-tokens", type=int, default=128, help="longest answer (default 128)")
    add("--ignore-eos", action="store_true", help="vLLM: answer at full length, for equal work in every run")
    add("--temperature", type=float, default=0.0, help="default 0")
    add("--timeout", type=float, default=600.0, help="seconds a request may take (default 600)")
    add("--slo", type=slo.parse, default={}, help="objectives a request must meet, such as ttft=500ms,tpot=50ms")
    add("--sweep", action="store_true", help="find the highest rate at which --attainment of requests meet --slo")
    add("--attainment", type=float, default=0.99, help="share of requests that must meet --slo (default 0.99)")
    add("--highest", type=float, default=1000.0, help="rate above which a sweep does not go (default 1000)")
    add("--seed", type=int, default=7, help="of prompts, their order and arrivals (default 7)")
    add("--json", type=Path, help="write settings, summary and every request here")
    add("--plot", type=Path, help="draw it: .png, .svg or .html")
    add("--key-file", type=Path, help=f"file with the API key; without it the variable {KEY_VARIABLE}")
    return made


@dataclass(frozen=True)
class Order:
    """What is to be run."""

    options: argparse.Namespace
    target: Target

    def prompts(self, seed: int) -> list[Prompt]:
        """The prompts of one run; another seed gives others, so that no run finds its prefixes cached."""
        options = self.options
        if options.prompts is None:
            return prompts.synthetic(options.requests, options.input_tokens, seed)
        return prompts.repeated(prompts.read(options.prompts), options.requests, seed)

    async def at(self, rate: float, seed: int) -> list[Sample]:
        """One run at a rate."""
        options = self.options
        offsets = arrivals.schedule(options.requests, rate, options.arrivals, seed)
        return await run(self.target, self.prompts(seed), offsets, options.concurrency, _progress(options.requests))

    async def warm_up(self) -> None:
        """Requests that are not counted, one by one; raises ValueError when one fails."""
        for prompt in prompts.synthetic(self.options.warm_up, self.options.input_tokens, self.options.seed - 1):
            for sample in await run(self.target, [prompt], [0.0]):
                if sample.error:
                    raise ValueError(f"the first request failed: {sample.error}")


def order(options: argparse.Namespace) -> Order:
    """Check what argparse cannot; raises ValueError."""
    if options.sweep and not options.slo:
        raise ValueError("--sweep looks for the highest rate within --slo: give one, such as ttft=500ms,tpot=50ms")
    if options.sweep and math.isinf(options.rate):
        options.rate = 1.0
    if not 0 < options.attainment <= 1:
        raise ValueError(f"--attainment is {options.attainment}: a share above 0 and at most 1")
    if options.plot and options.plot.suffix not in plot.SUFFIXES:
        raise ValueError(f"--plot {options.plot}: write .png, .svg or .html")
    for name in ("requests", "input_tokens", "output_tokens"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(options, name)}: it must be at least 1")
    extra: dict[str, Any] = {"temperature": options.temperature}
    if options.ignore_eos:
        extra["ignore_eos"] = True
    target = Target(
        options.url, options.model, options.operation, _key(options), options.output_tokens, options.timeout, extra
    )
    return Order(options, target)


def _key(options: argparse.Namespace) -> str:
    """The key, from where it does not show in a list of processes."""
    if options.key_file is None:
        return os.environ.get(KEY_VARIABLE, "")
    try:
        return str(options.key_file.read_text().strip())
    except OSError as error:
        raise ValueError(f"--key-file: {error}") from error


def _progress(total: int) -> Any:
    """Tell how many have ended, on a terminal only."""
    if not sys.stderr.isatty():
        return None

    def tell(ended: int) -> None:
        print(f"\r{ended} of {total} requests", end="\n" if ended == total else "", file=sys.stderr, flush=True)

    return tell


async def single(given: Order) -> tuple[str, dict[str, Any], Any]:
    """One run: words, document and, where wanted, a figure."""
    options = given.options
    await given.warm_up()
    samples = await given.at(options.rate, options.seed)
    summary = summarise(samples, options.slo)
    drawn = plot.draw_run(samples, options.slo) if options.plot else None
    return report.table(summary, options.slo), report.document(_settings(options), summary, samples), drawn


async def swept(given: Order) -> tuple[str, dict[str, Any], Any]:
    """Runs at the rates that the search asks for."""
    options = given.options
    await given.warm_up()
    runs: list[tuple[sweep.Trial, Summary]] = []
    while (rate := sweep.next_rate([trial for trial, _ in runs], options.rate, options.highest)) is not None:
        summary = summarise(await given.at(rate, options.seed + len(runs)), options.slo)
        met = (summary.slo_attainment or 0.0) >= options.attainment
        runs.append((sweep.Trial(rate, met), summary))
        print(f"{rate:.2f} requests/s: {summary.slo_attainment:.1%} met the objectives", file=sys.stderr, flush=True)
    drawn = plot.draw_sweep(runs, options.slo) if options.plot else None
    return report.sweep_table(runs), report.sweep_document(_settings(options), runs), drawn


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    left_out = {"key_file", "json", "plot"}
    found = {name: value for name, value in vars(options).items() if name not in left_out}
    rate = None if math.isinf(options.rate) else options.rate
    return found | {"rate": rate, "prompts": str(options.prompts) if options.prompts else None}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; 0 when every request succeeded, 1 when some failed or a sweep found no rate, 2 for a wrong option."""
    options = parser().parse_args(arguments)
    try:
        given = order(options)
        if options.plot:
            plot.figure()  # said before the load, not after it
        words, document, drawn = uvloop.run(swept(given) if options.sweep else single(given))
    except ValueError as error:
        print(f"tuneloop-bench: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("tuneloop-bench: stopped; nothing was written", file=sys.stderr)
        return 130
    print(words)
    if options.json:
        options.json.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))
    if options.plot:
        plot.write(drawn, options.plot, f"{options.model} at {options.url}", words)
    failed = document["rate"] is None if options.sweep else bool(document["summary"]["errors"])
    return int(failed)
