"""What the gateway costs, beside nginx as a plain reverse proxy and beside no proxy at all.

    .venv/bin/python benchmarks/gateway.py [--rounds 3] [--out gateway.json]

Measures CPU seconds per 1,000 requests and per million SSE chunks (256 paced streams), the time to first token that is
added, 1,024 streams at once, and peak memory. All sides run in turn in the same command on loopback, the best of
several rounds counts (others' work on the machine only ever adds). nginx is Debian's package, on PATH or named by
NGINX; without it the ratio is left out. Never leaves a process behind.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

PARTS = Path(__file__).parent / "gateway_parts"
KEY = "benchmark-key"
HASH = "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()
TICKS = os.sysconf("SC_CLK_TCK")
TARGETS = {"cpu_seconds_per_1000_requests": 0.35, "cpu_seconds_per_million_chunks": 45.0}

NGINX = """daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream up {{ server 127.0.0.1:{upstream}; keepalive 1024; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096; keepalive_requests 1000000;
    location / {{ proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}
"""


@dataclass
class Side:
    """One way to the upstream: its port and the processes whose CPU time counts."""

    name: str
    port: int
    pids: list[int]

    def cpu(self) -> float:
        """CPU seconds of its processes so far, user and system."""
        return sum(_cpu(pid) for pid in self.pids)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _peak_mib(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait(port: int, name: str) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise SystemExit(f"{name} did not listen on port {port} within 30 s")


@contextlib.contextmanager
def _running(command: list[str], **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, **more)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def upstream() -> Iterator[Side]:
    """The stand-in for a model server, which also is the gateway's API server."""
    port = _free_port()
    command = [sys.executable, str(PARTS / "upstream.py"), "--port", str(port), "--key-hash", HASH]
    with _running(command) as process:
        _wait(port, "the upstream")
        yield Side("direct", port, [process.pid])


@contextlib.contextmanager
def gateway(folder: Path, behind: int) -> Iterator[Side]:
    """The gateway as it runs in production, but for the kubeconfig."""
    (folder / "settings.yaml").write_text("images: {trainer: none, server: none}\n")
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{behind}"}}],
        "users": [{"name": "u", "user": {}}],
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    (folder / "token").write_text("benchmark-token")
    port = _free_port()
    env = os.environ | {
        "TUNELOOP_SETTINGS": str(folder / "settings.yaml"),
        "KUBECONFIG": str(folder / "kubeconfig"),
        "TUNELOOP_SERVER_TOKEN": str(folder / "token"),
        "TUNELOOP_GATEWAY_HOST": "127.0.0.1",
        "TUNELOOP_GATEWAY_PORT": str(port),
        "TUNELOOP_GATEWAY_INTERNAL_PORT": str(_free_port()),
        "TUNELOOP_GATEWAY_LAME_SECONDS": "0",
    }
    with (
        (folder / "gateway.log").open("wb") as log,
        (folder / "access.log").open("wb") as lines,
        _running([sys.executable, "-m", "tuneloop_gateway"], env=env, stdout=lines, stderr=log) as process,
    ):
        _wait(port, "the gateway")
        time.sleep(1)  # the first table
        yield Side("gateway", port, [process.pid])


@contextlib.contextmanager
def nginx(folder: Path, behind: int) -> Iterator[Side | None]:
    """nginx as a reverse proxy without buffering, one worker; None if it is not installed."""
    program = os.environ.get("NGINX") or shutil.which("nginx")
    if not program:
        yield None
        return
    port = _free_port()
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, upstream=behind, port=port))
    with _running([program, "-p", str(folder), "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL) as process:
        _wait(port, "nginx")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield Side("nginx", port, [process.pid, *map(int, children)])


def load(side: Side, folder: Path, mode: str, **options: object) -> dict[str, Any]:
    """Run the clients against one side; what they saw, and the side's CPU seconds."""
    out = folder / "load.json"
    command = [sys.executable, str(PARTS / "load.py"), mode, "--port", str(side.port), "--key", KEY, "--out", str(out)]
    command += ["--path", "/bench/v1/chat/completions"]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    before = side.cpu()
    subprocess.run(command, check=True, timeout=600)
    found: dict[str, Any] = json.loads(out.read_text())
    return found | {"cpu": side.cpu() - before}


def measure(side: Side, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """One round on one side."""
    load(side, folder, "requests", count=320)
    short = load(side, folder, "requests", count=options.requests)
    streams = load(side, folder, "streams", count=options.streams, tokens=options.tokens)
    first = load(side, folder, "ttft", count=options.requests // 8, connections=1)
    parts = statistics.quantiles(first["first"], n=100)
    return {
        "cpu_seconds_per_1000_requests": short["cpu"] / short["ok"] * 1000,
        "cpu_seconds_per_million_chunks": streams["cpu"] / streams["chunks"] * 1e6,
        "ttft_p50_ms": statistics.median(first["first"]) * 1000,
        "ttft_p99_ms": parts[98] * 1000,
        "failed": float(sum(len(each["failed"]) for each in (short, streams, first))),
    }


def best(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The least of each number over the rounds, but all failures."""
    found = {name: min(each[name] for each in rounds) for name in rounds[0]}
    return found | {"failed": sum(each["failed"] for each in rounds)}


def many(side: Side, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Many streams at once, slower, so that they all overlap."""
    found = load(side, folder, "streams", count=options.many, tokens=60, interval=0.2, ramp=4)
    return {"streams": options.many, "ok": found["ok"], "failed": len(found["failed"]), "reasons": found["failed"][:3]}


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything, side by side."""
    with upstream() as direct, gateway(folder, direct.port) as ours, nginx(folder, direct.port) as theirs:
        sides = [side for side in (direct, ours, theirs) if side]
        rounds: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
        for number in range(options.rounds):
            for side in sides:
                print(f"round {number + 1} of {options.rounds}: {side.name}", file=sys.stderr, flush=True)
                rounds[side.name].append(measure(side, folder, options))
        result: dict[str, Any] = {"sides": {name: best(each) for name, each in rounds.items()}, "rounds": rounds}
        result["many"] = {side.name: many(side, folder, options) for side in sides}
        result["gateway_peak_rss_mib"] = round(_peak_mib(ours.pids[0]), 1)
    return result


def summarise(result: dict[str, Any]) -> dict[str, Any]:
    """Differences and ratios."""
    sides = result["sides"]
    ours, direct, theirs = sides["gateway"], sides["direct"], sides.get("nginx")
    result["added_ttft_ms"] = {p: ours[f"ttft_{p}_ms"] - direct[f"ttft_{p}_ms"] for p in ("p50", "p99")}
    if theirs:
        result["ratio_to_nginx"] = {name: ours[name] / theirs[name] for name in TARGETS}
    result["targets_met"] = {name: ours[name] <= limit for name, limit in TARGETS.items()}
    result["targets_met"]["none_failed"] = not ours["failed"] and not result["many"]["gateway"]["failed"]
    return result


def show(result: dict[str, Any]) -> None:
    """The table."""
    names = [*TARGETS, "ttft_p50_ms", "ttft_p99_ms", "failed"]
    print(f"{'':34}" + "".join(f"{side:>10}" for side in result["sides"]) + f"{'target':>10}")
    for name in names:
        row = "".join(f"{side[name]:10.3f}" for side in result["sides"].values())
        print(f"{name:34}{row}" + (f"{TARGETS[name]:>10}" if name in TARGETS else ""))
    print("direct is the upstream's own cost; the proxies' columns are the proxies' alone")
    for name, found in result["many"].items():
        whole = f"{found['ok']} whole, {found['failed']} failed"
        print(f"{found['streams']} streams at once, {name}: {whole}", *found["reasons"])
    added = result["added_ttft_ms"]
    print(f"added time to first token: p50 {added['p50']:.2f} ms, p99 {added['p99']:.2f} ms (one stream at a time)")
    print(f"peak memory of the gateway: {result['gateway_peak_rss_mib']} MiB")
    for name, ratio in result.get("ratio_to_nginx", {}).items():
        print(f"ratio to nginx, {name}: {ratio:.2f}")
    print(f"targets met: {result['targets_met']}")


def main() -> int:
    """Run; exit 1 if a stream failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=6400)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--many", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path.home() / ".cache/tuneloop/benchmarks/gateway.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = summarise(run(options, Path(folder)))
    result["date"], result["load_average"] = datetime.now(UTC).isoformat(timespec="seconds"), os.getloadavg()
    show(result)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2))
    print(f"written to {options.out}")
    return 0 if result["targets_met"]["none_failed"] else 1


if __name__ == "__main__":
    sys.exit(main())
