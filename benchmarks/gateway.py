"""What the gateway costs, beside no proxy at all and beside other proxies, before the same stand-in for a model server.

    make bench-gateway                                            # all peers, three rounds
    make bench-gateway ARGS="--rounds 1 --peers nginx,smg"

Measures CPU seconds per 1,000 requests and per million SSE chunks (256 streams, 20 ms a chunk), the time to the first
token of single requests alone and while 32, 256 or 1,024 streams run, the gaps between the tokens of these streams
(what is added to TTFT and ITL: the difference to no proxy), failures at 1,024 streams, and peak memory. The gateway
checks a key, counts limits and measures; the others only pass on. All sides run in turn in the same command on
loopback; each proxy has one core for itself, where there are two, and clients and stand-in share the other. Of each
number the best of the rounds counts (others' work on the machine only ever adds), of failures all. Never leaves a
process behind.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import _children
from gateway_parts import peers
from gateway_parts.sides import KEY, PARTS, Side, gateway, pin, upstream

TARGETS = {
    "cpu_seconds_per_1000_requests": 0.35,
    "cpu_seconds_per_million_chunks": 45.0,
    "added_ttft_p50_ms_at_256": 1.5,
    "added_ttft_p99_ms_at_256": 8.0,
}
FELT = ("ttft_", "itl_")  # what a proxy adds to, so the difference to no proxy is what is shown


def load(side: Side, folder: Path, mode: str, **options: object) -> dict[str, Any]:
    """Run the clients against one side; what they saw, and the side's CPU seconds."""
    out = folder / "load.json"
    command = [sys.executable, str(PARTS / "load.py"), mode, "--port", str(side.port), "--key", KEY, "--out", str(out)]
    command += ["--path", side.path]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    before = side.cpu()
    _children.run(command, check=True, timeout=600)
    found: dict[str, Any] = json.loads(out.read_text())
    return found | {"cpu": side.cpu() - before}


def measure(side: Side, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One round on one side."""
    load(side, folder, "requests", count=320)
    short = load(side, folder, "requests", count=options.requests)
    alone = load(side, folder, "ttft", count=options.requests // 8, connections=1)
    paced = {"tokens": options.tokens, "interval": options.interval, "probes": options.probes}
    few = load(side, folder, "streams", count=32, **paced)
    streams = load(side, folder, "streams", count=256, **paced)
    many = load(side, folder, "streams", count=1024, tokens=60, interval=0.2, ramp=4, probes=options.probes)
    numbers = {
        "cpu_seconds_per_1000_requests": short["cpu"] / max(1, short["ok"]) * 1000,
        "cpu_seconds_per_million_chunks": streams["cpu"] / max(1, streams["chunks"]) * 1e6,
        **_ttft("1", alone["first"]),
    }
    for count, each in ((32, few), (256, streams), (1024, many)):
        numbers |= _ttft(str(count), each["probes"])
        numbers |= {f"itl_{part}_ms_at_{count}": seconds * 1000 for part, seconds in each["gaps"].items()}
    reasons = [word for each in (short, alone, few, streams, many) for word in each["failed"]]
    return {"numbers": numbers, "failed": len(reasons), "at_1024": len(many["failed"]), "reasons": reasons[:3]}


def _ttft(name: str, seconds: list[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return {}
    parts = statistics.quantiles(seconds, n=100)
    return {f"ttft_p50_ms_at_{name}": statistics.median(seconds) * 1000, f"ttft_p99_ms_at_{name}": parts[98] * 1000}


def best(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The least of each number over the rounds, but all failures."""
    names = dict.fromkeys(name for each in rounds for name in each["numbers"])
    least = {name: min(each["numbers"][name] for each in rounds if name in each["numbers"]) for name in names}
    return {
        "numbers": least,
        "failed": sum(each["failed"] for each in rounds),
        "at_1024": sum(each["at_1024"] for each in rounds),
        "reasons": [word for each in rounds for word in each["reasons"]][:3],
    }


def place(sides: list[Side]) -> None:
    """The proxies on the last core; ourselves, so the clients too, and the stand-in on the others."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return
    os.sched_setaffinity(0, set(cores[:-1]))
    for side in sides:
        pin(side.pids, cores[0] if side.name == "direct" else cores[-1])


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything, side by side."""
    with contextlib.ExitStack() as stack:
        direct = stack.enter_context(upstream())
        sides = [direct, stack.enter_context(gateway(folder, direct.port))]
        for name in options.peers:
            peer = stack.enter_context(peers.PEERS[name](folder, direct.port))
            if peer is None:
                print(f"{name} is not installed: left out", file=sys.stderr)
            else:
                sides.append(peer)
        place(sides)
        rounds: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
        for number in range(options.rounds):
            for side in sides:
                rounds[side.name].append(measure(side, folder, options))
                words = json.dumps(rounds[side.name][-1])
                print(f"round {number + 1} of {options.rounds}: {side.name} {words}", file=sys.stderr, flush=True)
        found = {name: best(each) for name, each in rounds.items()}
        for side in sides:
            found[side.name]["peak_mib"] = round(side.peak_mib(), 1)
    return {"sides": found, "rounds": rounds}


def summarise(result: dict[str, Any]) -> dict[str, Any]:
    """What each adds to no proxy, and whether ours is within its targets."""
    direct = result["sides"]["direct"]["numbers"]
    for side in result["sides"].values():
        numbers = side["numbers"]
        for name in [name for name in numbers if name.startswith(FELT) and name in direct]:
            numbers[f"added_{name}"] = numbers[name] - direct[name]
    ours = result["sides"]["gateway"]
    met = {name: ours["numbers"].get(name, float("inf")) <= limit for name, limit in TARGETS.items()}
    return result | {"targets_met": met | {"none_failed": not ours["failed"]}}


def table(result: dict[str, Any]) -> str:
    """For people."""
    sides = result["sides"]
    lines = [f"{'':32}" + "".join(f"{name:>13}" for name in sides) + f"{'target':>9}"]
    names = [name for name in sides["gateway"]["numbers"] if not name.startswith(FELT)]
    for name in names:
        row = "".join(f"{side['numbers'].get(name, float('nan')):13.3f}" for side in sides.values())
        lines.append(f"{name:32}{row}{TARGETS.get(name, ''):>9}")
    for name in ("failed", "at_1024", "peak_mib"):
        label = {"at_1024": "failed, of 1,024 streams"}.get(name, name)
        lines.append(f"{label:32}" + "".join(f"{side[name]:>13}" for side in sides.values()))
    lines += ["direct is the stand-in's own cost; the proxies' columns are the proxies' alone"]
    lines += [f"{name}: {word}" for name, side in sides.items() for word in side["reasons"]]
    return "\n".join([*lines, f"targets met: {result['targets_met']}"])


def main() -> int:
    """Run; exit 1 if a stream of ours failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=6400, help="short ones")
    parser.add_argument("--tokens", type=int, default=400, help="of each of the 256 streams")
    parser.add_argument("--interval", type=float, default=0.02, help="seconds between the tokens of a stream")
    parser.add_argument("--probes", type=int, default=500, help="requests whose first token is timed while streams run")
    parser.add_argument("--peers", type=lambda text: [each for each in text.split(",") if each], default=[*peers.PEERS])
    parser.add_argument("--out", type=Path, default=Path.home() / ".cache/tuneloop/benchmarks/gateway.json")
    options = parser.parse_args()
    _children.end_in_order()
    if unknown := set(options.peers) - set(peers.PEERS):
        parser.error(f"--peers: {', '.join(sorted(unknown))}: there are {', '.join(peers.PEERS)}")
    if set(options.peers) - {"nginx"}:
        peers.prepare()
    with tempfile.TemporaryDirectory() as folder:
        before = os.getloadavg()[0]
        result = summarise(run(options, Path(folder)))
    result |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "load_average": [before, os.getloadavg()[0]]}
    print(table(result))
    print(f"load average before {before:.1f}, after {result['load_average'][1]:.1f}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2))
    print(f"written to {options.out}")
    return 0 if result["targets_met"]["none_failed"] else 1


if __name__ == "__main__":
    sys.exit(main())
