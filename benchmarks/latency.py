"""Does tuneloop-bench measure what ``vllm bench serve`` measures? Both, in turn, against one bare vLLM server.

    make bench-latency ARGS="--model ~/.cache/tuneloop/models/... [--rounds 3] [--rate 2] [--requests 60]"

The same prompts, constant arrivals at the same rate, answers of the same length, no prefix cache. Prints the medians of
TTFT, TPOT, ITL and end to end as each found them, the median over the rounds, and their ratio; the aim is within 5 %.
The engine runs in the server image's own environment (``make test`` makes it). Never leaves a process behind.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuneloop_gateway.bench.prompts import synthetic

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("TUNELOOP_CACHE", Path.home() / ".cache" / "tuneloop"))
METRICS = ("ttft", "tpot", "itl", "e2el")
START_SECONDS = 600


def engine(*words: str) -> list[str]:
    """A command in the server image's environment; vLLM reads its custom prompts with pandas."""
    uv = [str(ROOT / "scripts" / "uv"), "run", "--quiet", "--frozen", "--directory", str(ROOT / "server-image")]
    return [*uv, "--extra", "cpu", "--with", "pandas", "vllm", *words]


def environment() -> dict[str, str]:
    """Where the engine's environment lies, and how little memory it may keep for the cache."""
    own = {"UV_PROJECT_ENVIRONMENT": str(CACHE / "server-venv"), "VLLM_CPU_KVCACHE_SPACE": "1", "VIRTUAL_ENV": ""}
    return {**os.environ, **own}


@contextlib.contextmanager
def served(model: Path, folder: Path) -> Iterator[str]:
    """A bare vLLM server of the model; yields its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["serve", str(model), "--served-model-name", "bench", "--port", str(port), "--host", "127.0.0.1"]
    plain = ["--no-enable-prefix-caching", "--max-model-len", "1024", "--enforce-eager", "--dtype", "float32"]
    with (
        (folder / "server.log").open("w") as log,
        subprocess.Popen(
            engine(*words, *plain), env=environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        ) as server,
    ):
        try:
            _wait(f"http://127.0.0.1:{port}/health", server, folder / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, 15)


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


def ours(url: str, options: argparse.Namespace, prompts: Path, folder: Path) -> dict[str, float]:
    """Medians by tuneloop-bench, milliseconds."""
    out = folder / "ours.json"
    load = ["--rate", str(options.rate), "--arrivals", "constant", "--requests", str(options.requests)]
    words = ["--model", "bench", "--operation", "completions", "--prompts", str(prompts), "--ignore-eos"]
    size = ["--output-tokens", str(options.output_tokens), "--json", str(out)]
    command = [sys.executable, "-m", "tuneloop_gateway.bench", f"{url}/v1", *words, *load, *size]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = json.loads(out.read_text())["summary"]["metrics"]
    return {name: found["e2e" if name == "e2el" else name]["percentiles"]["50"] * 1000 for name in METRICS}


def theirs(url: str, options: argparse.Namespace, prompts: Path, folder: Path) -> dict[str, float]:
    """Medians by ``vllm bench serve``, milliseconds."""
    load = ["--request-rate", str(options.rate), "--burstiness", "inf", "--num-prompts", str(options.requests)]
    data = ["--dataset-name", "custom", "--dataset-path", str(prompts), "--skip-chat-template", "--disable-shuffle"]
    size = ["--custom-output-len", str(options.output_tokens), "--ignore-eos", "--num-warmups", "1"]
    place = ["--base-url", url, "--endpoint", "/v1/completions", "--backend", "openai", "--model", "bench"]
    write = ["--save-result", "--result-dir", str(folder), "--result-filename", "theirs.json", "--disable-tqdm"]
    told = ["--tokenizer", str(options.model), "--percentile-metrics", ",".join(METRICS), "--temperature", "0"]
    command = engine("bench", "serve", *load, *data, *size, *place, *write, *told)
    subprocess.run(command, check=True, env=environment(), stdout=subprocess.DEVNULL)
    found = json.loads((folder / "theirs.json").read_text())
    return {name: found[f"median_{name}_ms"] for name in METRICS}


def measure(options: argparse.Namespace) -> list[dict[str, dict[str, float]]]:
    """All rounds, each side in turn."""
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompts = folder / "prompts.jsonl"
        made = synthetic(options.requests, options.input_tokens, seed=7)
        prompts.write_text("".join(json.dumps({"prompt": each.as_text()}) + "\n" for each in made))
        with served(options.model, folder) as url:
            for number in range(options.rounds):
                found = {"ours": ours(url, options, prompts, folder), "theirs": theirs(url, options, prompts, folder)}
                print(f"round {number + 1} of {options.rounds}: {json.dumps(found)}", file=sys.stderr, flush=True)
                rounds.append(found)
    return rounds


def table(rounds: list[dict[str, dict[str, float]]]) -> tuple[str, dict[str, Any]]:
    """The medians over the rounds side by side, and as JSON."""
    lines = [f"{'median, ms':<14}{'tuneloop-bench':>16}{'vllm bench':>14}{'ratio':>8}"]
    result: dict[str, Any] = {}
    for name in METRICS:
        one, other = (statistics.median(each[side][name] for each in rounds) for side in ("ours", "theirs"))
        lines.append(f"{name:<14}{one:>16.2f}{other:>14.2f}{one / other:>8.3f}")
        result[name] = {"ours": one, "theirs": other, "ratio": one / other}
    return "\n".join(lines), result


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=2.0, help="requests per second")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--input-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "latency.json")
    options = parser.parse_args()
    options.model = options.model.expanduser().resolve()
    rounds = measure(options)
    words, result = table(rounds)
    print(words)
    options.out.parent.mkdir(exist_ok=True)
    settings = {name: getattr(options, name) for name in ("rate", "requests", "input_tokens", "output_tokens")}
    document = {"date": datetime.now(UTC).date().isoformat(), "settings": settings, "medians": result, "rounds": rounds}
    options.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
