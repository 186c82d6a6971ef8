"""Does tuneloop-bench measure what ``vllm bench serve`` measures, and what does the gateway take from a real engine?

    make bench-latency ARGS="--model ~/.cache/tuneloop/models/... [--rounds 3] [--rate 1] [--requests 40]"

One bare vLLM server, and our gateway before it. In each round, in an order that changes from round to round:
1. tuneloop-bench and ``vllm bench serve`` (vLLM's own command, unchanged) against the bare server, and the latter
   through the gateway too: the same prompts in the same order, constant arrivals, answers of one length, no prefix
   cache. The medians of the two clients should agree within 5 %.
2. tuneloop-bench at full speed with 1, 8 and 32 requests under way, bare and through the gateway: output tokens per
   second. The gateway should keep 97 % of them.
Prints the medians over the rounds and the load average; exit code 1 if a request failed. The engine runs in the server
image's own environment (``make test`` makes it), with ``--threads`` threads: one less than there are cores leaves the
clients and the gateway a core of their own. Never leaves a process behind.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _children import end_in_order, run, running
from gateway_parts.sides import KEY, OURS, free_port, gateway, upstream

from tuneloop_gateway.bench.prompts import synthetic

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("TUNELOOP_CACHE") or Path.home() / ".cache" / "tuneloop")
METRICS = ("ttft", "tpot", "itl", "e2el")
MODEL = "model"  # as the stand-in for the API server names it
SEED = "7"
START_SECONDS = 600

Numbers = dict[str, float]


@dataclass(frozen=True)
class Bench:
    """What every run needs."""

    options: argparse.Namespace
    folder: Path
    bases: dict[str, str]  # bare, gateway -> base URL without /v1


def vllm(*words: str) -> list[str]:
    """vLLM's command in the server image's environment; it reads its custom prompts with pandas."""
    uv = [str(ROOT / "scripts" / "uv"), "run", "--quiet", "--frozen", "--directory", str(ROOT / "server-image")]
    return [*uv, "--extra", "cpu", "--with", "pandas", "python", str(ROOT / "benchmarks/_latency_side.py"), *words]


def environment(threads: int = 1) -> dict[str, str]:
    """Where the engine's environment lies, its threads, and how little memory it may keep for the cache."""
    own = {"UV_PROJECT_ENVIRONMENT": str(CACHE / "server-venv"), "VIRTUAL_ENV": "", "VLLM_CPU_KVCACHE_SPACE": "1"}
    own |= {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OPENAI_API_KEY": KEY}
    return {**os.environ, **own, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


@contextlib.contextmanager
def served(options: argparse.Namespace, folder: Path) -> Iterator[int]:
    """A bare vLLM server of the model; yields its port."""
    port = free_port()
    words = ["serve", str(options.model), "--served-model-name", MODEL, "--port", str(port), "--host", "127.0.0.1"]
    plain = ["--no-enable-prefix-caching", "--max-model-len", "1024", "--enforce-eager", "--dtype", options.dtype]
    environment_, log = environment(options.threads), (folder / "server.log").open("w")
    with log, running(vllm(*words, *plain), env=environment_, stdout=log, stderr=subprocess.STDOUT) as server:
        _wait(f"http://127.0.0.1:{port}/health", server, folder / "server.log")
        yield port


def _wait(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            sys.exit(f"the server ended with {server.returncode}:\n{log.read_text()[-2000:]}")
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=5)
            return
        time.sleep(1)
    sys.exit(f"the server did not answer within {START_SECONDS} s:\n{log.read_text()[-2000:]}")


def write_prompts(bench: Bench, name: str, count: int) -> Path:
    """Prompts as both clients read them."""
    path = bench.folder / f"{name}.jsonl"
    made = synthetic(count, bench.options.input_tokens, seed=int(SEED))
    path.write_text("".join(json.dumps({"prompt": each.as_text()}) + "\n" for each in made))
    return path


def ours(bench: Bench, side: str, load: list[str], prompts: Path, tokens: int) -> dict[str, Any]:
    """A run of tuneloop-bench; its summary."""
    out = bench.folder / "ours.json"
    words = ["--model", MODEL, "--operation", "completions", "--prompts", str(prompts), "--ignore-eos", "--seed", SEED]
    command = [sys.executable, "-m", "tuneloop_gateway.bench", f"{bench.bases[side]}/v1", *words, *load]
    command += ["--output-tokens", str(tokens), "--json", str(out)]
    run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"TUNELOOP_API_KEY": KEY})
    found: dict[str, Any] = json.loads(out.read_text())["summary"]
    return found


def our_medians(bench: Bench, side: str) -> Numbers:
    """Medians by tuneloop-bench at the rate, milliseconds."""
    options, count = bench.options, bench.options.requests
    load = ["--rate", str(options.rate), "--arrivals", "constant", "--requests", str(count)]
    found = ours(bench, side, load, write_prompts(bench, "rate", count), options.output_tokens)["metrics"]
    return {name: found["e2e" if name == "e2el" else name]["percentiles"]["50"] * 1000 for name in METRICS}


def their_medians(bench: Bench, side: str) -> Numbers:
    """Medians by ``vllm bench serve`` at the rate, milliseconds."""
    options = bench.options
    load = ["--request-rate", str(options.rate), "--burstiness", "inf", "--num-prompts", str(options.requests)]
    prompts = write_prompts(bench, "rate", options.requests)
    data = ["--dataset-name", "custom", "--dataset-path", str(prompts), "--skip-chat-template", "--seed", SEED]
    size = ["--custom-output-len", str(options.output_tokens), "--ignore-eos", "--num-warmups", "1"]
    place = ["--base-url", bench.bases[side], "--endpoint", "/v1/completions", "--backend", "openai", "--model", MODEL]
    write = ["--save-result", "--result-dir", str(bench.folder), "--result-filename", "theirs.json", "--disable-tqdm"]
    told = ["--tokenizer", str(options.model), "--percentile-metrics", ",".join(METRICS), "--temperature", "0"]
    command = vllm("bench", "serve", *load, *data, *size, *place, *write, *told)
    with (bench.folder / "theirs.log").open("w") as log:
        done = run(command, check=False, env=environment(), stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"vllm bench serve failed:\n{(bench.folder / 'theirs.log').read_text()[-2000:]}")
    found = json.loads((bench.folder / "theirs.json").read_text())
    if found["completed"] != options.requests:
        sys.exit(f"vllm bench serve, {side}: {found['completed']} of {options.requests} requests succeeded")
    return {name: found[f"median_{name}_ms"] for name in METRICS}


def throughput(bench: Bench, side: str, streams: int) -> Numbers:
    """Output tokens per second at full speed, and the medians of TTFT and TPOT, milliseconds."""
    count = max(bench.options.least, 2 * streams)
    load = ["--concurrency", str(streams), "--requests", str(count)]
    found = ours(bench, side, load, write_prompts(bench, "full", count), bench.options.full_tokens)
    medians = {name: found["metrics"][name]["percentiles"]["50"] * 1000 for name in ("ttft", "tpot")}
    return {"tokens": found["output_token_rate"], **medians}


def one_round(bench: Bench, number: int) -> dict[str, Any]:
    """Everything once; the order is turned round in every second round."""
    turn = -1 if number % 2 else 1
    clients = {
        "ours": lambda: our_medians(bench, "bare"),
        "theirs": lambda: their_medians(bench, "bare"),
        "through": lambda: their_medians(bench, "gateway"),
    }
    found: dict[str, Any] = {name: clients[name]() for name in list(clients)[::turn]}
    full = {}
    for streams in bench.options.streams:
        full[str(streams)] = {side: throughput(bench, side, streams) for side in ("bare", "gateway")[::turn]}
    return found | {"full": full, "load_average": os.getloadavg()[0]}


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rounds."""
    rounds = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(served(options, folder))
        cluster = stack.enter_context(upstream(server))
        door = stack.enter_context(gateway(folder, cluster.port))
        bases = {"bare": f"http://127.0.0.1:{server}", "gateway": f"http://127.0.0.1:{door.port}{OURS}"}
        for number in range(options.rounds):
            rounds.append(one_round(Bench(options, folder, bases), number))
            print(f"round {number + 1} of {options.rounds}: {json.dumps(rounds[-1])}", file=sys.stderr, flush=True)
    return rounds


def summarise(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds."""
    sides = ("ours", "theirs", "through")
    rate = {name: {side: statistics.median(each[side][name] for each in rounds) for side in sides} for name in METRICS}
    full: dict[str, Any] = {}
    for streams, first in rounds[0]["full"].items():
        found = {side: [each["full"][streams][side] for each in rounds] for side in first}
        full[streams] = {
            side: {name: statistics.median(each[name] for each in runs) for name in runs[0]}
            for side, runs in found.items()
        }
    return {"rate": rate, "full": full}


def table(found: dict[str, Any]) -> str:
    """For people."""
    lines = [
        f"{'median, ms':<12}{'tuneloop-bench':>16}{'vllm bench':>12}{'ratio':>8}{'through gateway':>18}{'added':>8}"
    ]
    for name, side in found["rate"].items():
        added, ratio = side["through"] - side["theirs"], side["ours"] / side["theirs"]
        lines.append(
            f"{name:<12}{side['ours']:>16.2f}{side['theirs']:>12.2f}{ratio:>8.3f}{side['through']:>18.2f}{added:>8.2f}"
        )
    lines += ["", f"{'full speed':<12}{'bare tokens/s':>16}{'gateway':>12}{'share':>8}{'TTFT ms':>18}{'TPOT ms':>16}"]
    for streams, side in found["full"].items():
        bare, door = side["bare"], side["gateway"]
        both = "".join(
            f"{f'{bare[name]:.0f} -> {door[name]:.0f}':>{width}}" for name, width in (("ttft", 18), ("tpot", 16))
        )
        share = door["tokens"] / bare["tokens"]
        lines.append(f"{streams + ' streams':<12}{bare['tokens']:>16.1f}{door['tokens']:>12.1f}{share:>8.1%}{both}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=1.0, help="requests per second")
    parser.add_argument("--requests", type=int, default=40, help="at the rate")
    parser.add_argument("--input-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=32, help="of each request at the rate")
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 8, 32], help="requests under way at full speed")
    parser.add_argument("--full-tokens", type=int, default=64, help="output tokens of each request at full speed")
    parser.add_argument(
        "--least", type=int, default=8, help="requests at full speed, where twice the streams are fewer"
    )
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="of the engine")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "latency.json")
    options = parser.parse_args()
    end_in_order()
    options.model = options.model.expanduser().resolve()
    rounds = measure(options)
    found = summarise(rounds)
    print(table(found))
    print("load average after each round:", *(f"{each['load_average']:.1f}" for each in rounds))
    options.out.parent.mkdir(exist_ok=True)
    settings = {name: str(value) for name, value in vars(options).items() if name not in ("out", "model")}
    document = {"date": datetime.now(UTC).date().isoformat(), "settings": settings, "medians": found, "rounds": rounds}
    options.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
