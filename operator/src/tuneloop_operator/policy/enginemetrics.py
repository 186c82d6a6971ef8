"""The three gauges of vLLM's /metrics that scaling reads, out of its text. Pure.

A line scan rather than a parser: the page has some thousand lines, and three of them are wanted every few seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tuneloop_operator.policy.wishes import EngineSample

RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
KV_CACHE = "vllm:kv_cache_usage_perc"


@dataclass(frozen=True)
class EngineGauges:
    """One replica's engine, or its engines together: requests summed, the fullest KV cache."""

    running: float
    waiting: float
    kv_cache: float  # share used, 0 to 1


def parse(text: str) -> EngineGauges | None:
    """The gauges of one replica; None when the page is not vLLM's."""
    try:
        found = {name: _values(text, name) for name in (RUNNING, WAITING, KV_CACHE)}
    except ValueError:
        return None
    if not all(found.values()):
        return None
    return EngineGauges(sum(found[RUNNING]), sum(found[WAITING]), max(found[KV_CACHE]))


def together(at: float, replicas: Sequence[EngineGauges]) -> EngineSample | None:
    """All replicas at one moment: requests summed, KV caches averaged; None without any."""
    if not replicas:
        return None
    kv_cache = sum(each.kv_cache for each in replicas) / len(replicas)
    return EngineSample(at, sum(each.running for each in replicas), sum(each.waiting for each in replicas), kv_cache)


def _values(text: str, name: str) -> list[float]:
    lines = (line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} ")))
    return [float(line.rpartition(" ")[2]) for line in lines]
