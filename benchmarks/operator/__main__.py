"""How fast the operator reconciles, beside the raw rate of the same writes on the same API server, in the same command.

    .venv/bin/python benchmarks/operator [--objects 1000] [--paced 50] [--out operator.json]

Needs the variant of the local cluster with only etcd and an API server (started if it is not up). Burst: all
FineTuneJobs at once, until each has its first Job and its status. Paced: at a steady rate; a latency is from the answer
to the create until a watch shows the first Job. Raw: the same Job creates and status patches by the same client with
as many workers, no operator between. A folder, not operator.py: that would shadow the standard library.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _children import end_in_order, running

from tuneloop_core.api import FineTuneJob
from tuneloop_core.settings import ImageSettings, Settings
from tuneloop_core.stages import Stage
from tuneloop_operator.build.stages import build_stage
from tuneloop_operator.kube.client import Client
from tuneloop_operator.kube.credentials import from_kubeconfig
from tuneloop_operator.kube.resources import FINETUNEJOBS, JOBS, Obj
from tuneloop_operator.kube.session import open_session

WORKERS = 16
LIVENESS, METRICS = 28081, 29090
SETTINGS = Settings(images=ImageSettings(trainer="t", server="s"))


@dataclass
class Result:
    """One row; rates in objects a second, latencies in milliseconds."""

    what: str
    objects: int
    seconds: float
    rate: float
    p50: float | None = None
    p99: float | None = None
    writes: float | None = None
    rss_mib: float | None = None
    cpu_ms: float | None = None  # of the operator's process, per object


@dataclass
class Bench:
    """One run: its API server, a namespace a step."""

    kubeconfig: Path
    client: Client
    results: list[Result] = field(default_factory=list)

    async def namespace(self) -> str:
        """A new namespace; without controllers none is ever deleted."""
        name = f"bench-{uuid.uuid4().hex[:8]}"
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        await self.client._request("POST", "/api/v1/namespaces", body=body, content_type="application/json")
        return name

    async def raw(self, count: int) -> None:
        """The same writes without an operator: a Job and a status for each of ``count`` resources."""
        namespace = await self.namespace()
        made = await in_parallel(count, lambda n: self.client.create(FINETUNEJOBS, resource(namespace, n)))
        began = time.perf_counter()
        await in_parallel(count, lambda n: self._raw_one(made[n]))
        seconds = time.perf_counter() - began
        self.results.append(Result("raw writes", count, seconds, count / seconds))

    async def _raw_one(self, obj: Obj) -> None:
        job = FineTuneJob.model_validate(obj)
        await self.client.create(JOBS, build_stage(Stage.FETCH, job, None, SETTINGS, "bench"))
        metadata = obj["metadata"]
        status = {"observedGeneration": 1, "stage": "Fetching", "conditions": [], "stages": STAGES}
        await self.client.patch(FINETUNEJOBS, metadata["namespace"], metadata["name"], {"status": status}, "status")

    async def operated(self, what: str, count: int, rate: float) -> None:
        """The operator's turn: all at once (``rate`` 0) or ``rate`` objects a second."""
        namespace = await self.namespace()
        with Operator(self.kubeconfig, namespace) as operator:
            await operator.ready()
            await self.warm(namespace)
            seen: dict[str, float] = {}
            watching = asyncio.create_task(watch_jobs(self.client, namespace, seen))
            cpu = operator.metric("process_cpu_seconds_total")
            before, created, began = operator.metric("tuneloop_api_writes_total"), {}, time.perf_counter()
            await self._load(namespace, count, rate, created)
            names = {f"{name}-fetch": at for name, at in created.items()}
            await until(lambda: names.keys() <= seen.keys(), f"{count} Jobs")
            await until(lambda: operator.metric("tuneloop_api_writes_total") - before >= 2 * count, "status writes")
            seconds = time.perf_counter() - began
            watching.cancel()
            waits = sorted(1000 * (seen[name] - at) for name, at in names.items())
            self.results.append(
                Result(
                    what,
                    count,
                    seconds,
                    count / seconds,
                    p50=statistics.median(waits),
                    p99=waits[int(0.99 * len(waits)) - 1],
                    writes=operator.metric("tuneloop_api_writes_total") - before,
                    rss_mib=operator.metric("process_resident_memory_bytes") / 2**20,
                    cpu_ms=1000 * (operator.metric("process_cpu_seconds_total") - cpu) / count,
                )
            )

    async def warm(self, namespace: str) -> None:
        """One object first: the namespace's claim and policies are made once and are not part of the measure."""
        await self.client.create(FINETUNEJOBS, resource(namespace, 999999))
        await until_async(lambda: exists(self.client, namespace, "job-999999-fetch"), "the first Job")

    async def _load(self, namespace: str, count: int, rate: float, created: dict[str, float]) -> None:
        async def one(number: int) -> None:
            obj = await self.client.create(FINETUNEJOBS, resource(namespace, number))
            created[obj["metadata"]["name"]] = time.perf_counter()

        if not rate:
            await in_parallel(count, one)
            return
        began, tasks = time.perf_counter(), []
        for number in range(count):
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(one(number)))
        await asyncio.gather(*tasks)


STAGES = [{"name": stage.value, "state": "Pending"} for stage in Stage]


class Operator:
    """The operator as its own process, watching one namespace."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        settings = Path(self._folder.name) / "settings.yaml"
        images = {"trainer": "t", "server": "s"}
        settings.write_text(yaml.safe_dump({"namespace": namespace, "namespaces": [namespace], "images": images}))
        self._env = os.environ | {
            "KUBECONFIG": str(kubeconfig),
            "TUNELOOP_SETTINGS": str(settings),
            "TUNELOOP_LIVENESS_PORT": str(LIVENESS),
            "TUNELOOP_METRICS_PORT": str(METRICS),
            "TUNELOOP_LOG_LEVEL": "warning",
        }

    def __enter__(self) -> "Operator":
        self._running = running([sys.executable, "-m", "tuneloop_operator"], env=self._env)
        self._running.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.__exit__(None, None, None)
        self._folder.cleanup()

    async def ready(self) -> None:
        """It leads."""
        await until(lambda: self.metric("tuneloop_leader") == 1, "the operator to lead")

    def metric(self, name: str) -> float:
        """Sum of a metric's samples; 0 while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{METRICS}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return 0.0
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def resource(namespace: str, number: int) -> Obj:
    """A FineTuneJob."""
    return {
        "apiVersion": FINETUNEJOBS.api_version,
        "kind": FINETUNEJOBS.kind,
        "metadata": {"name": f"job-{number}", "namespace": namespace},
        "spec": {"model": {"uri": "hf://org/model"}, "dataset": {"uri": "hf://datasets/org/data"}},
    }


async def in_parallel(count: int, work: Callable[[int], Awaitable[Any]]) -> list[Any]:
    """``work(0..count-1)`` by as many workers as the operator has."""
    answers: list[Any] = [None] * count
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            answers[number] = await work(number)

    await asyncio.gather(*(worker() for _ in range(WORKERS)))
    return answers


async def watch_jobs(client: Client, namespace: str, seen: dict[str, float]) -> None:
    """Note when a watch shows each Job."""
    url = f"{client.credentials.server}{JOBS.path(namespace)}?watch=true"
    async with open_session(client.credentials) as session, session.get(url, timeout=aiohttp.ClientTimeout()) as answer:
        async for line in answer.content:
            seen.setdefault(json.loads(line)["object"]["metadata"]["name"], time.perf_counter())


async def exists(client: Client, namespace: str, name: str) -> bool:
    """Whether a Job is there."""
    return any(job["metadata"]["name"] == name for job in await client.list(JOBS, namespace))


async def until(probe: Callable[[], bool], what: str) -> None:
    """Wait for a condition; ten minutes end a hang."""

    async def ask() -> bool:
        return await asyncio.to_thread(probe)

    await until_async(ask, what)


async def until_async(probe: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait for a condition that takes a request; ten minutes end a hang."""
    end = time.monotonic() + 600
    while not await probe():
        if time.monotonic() > end:
            raise SystemExit(f"waited in vain for {what}")
        await asyncio.sleep(0.02)


def table(results: list[Result]) -> str:
    """The rows for people."""
    heads = (
        ("objects", 8),
        ("s", 8),
        ("per s", 8),
        ("p50 ms", 9),
        ("p99 ms", 9),
        ("writes", 8),
        ("MiB", 6),
        ("CPU ms", 8),
    )
    lines = [" " * 14 + "".join(f"{name:>{width}}" for name, width in heads)]
    for row in results:
        numbers = (row.p50, row.p99, row.writes, row.rss_mib, row.cpu_ms)
        cells = ["" if number is None else f"{number:.0f}" for number in numbers]
        lines.append(
            f"{row.what:<14}{row.objects:>8}{row.seconds:>8.1f}{row.rate:>8.0f}"
            f"{cells[0]:>9}{cells[1]:>9}{cells[2]:>8}{cells[3]:>6}{cells[4]:>8}"
        )
    raw, burst = results[0].rate, results[1].rate
    lines.append(f"burst against raw: {raw / burst:.2f}x (must be within 2x; one object's writes: a Job and a status)")
    return "\n".join(lines)


async def measure(kubeconfig: Path, objects: int, paced: float) -> list[Result]:
    """Raw, burst, paced."""
    client = Client(from_kubeconfig(kubeconfig))
    try:
        bench = Bench(kubeconfig, client)
        await bench.raw(objects)
        await bench.operated("burst", objects, 0)
        await bench.operated(f"paced {paced:.0f}/s", min(objects, 1000), paced)
        return bench.results
    finally:
        await client.close()


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--objects", type=int, default=1000)
    parser.add_argument("--paced", type=float, default=50.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "operator.json")
    options = parser.parse_args()
    end_in_order()
    cluster = [sys.executable, "-m", "tuneloop_localcluster"]
    subprocess.run([*cluster, "up", "--api-only"], check=True)
    kubeconfig = subprocess.run([*cluster, "kubeconfig", "--api-only"], check=True, capture_output=True, text=True)
    results = asyncio.run(measure(Path(kubeconfig.stdout.strip()), options.objects, options.paced))
    print(table(results))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    record = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "results": [asdict(row) for row in results]}
    options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
