"""The side of benchmarks/adapters.py that has the engine: one server process, callers, loads and unloads."""

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from _children import end_in_order
from markers import LETTERS, marker_adapter
from server_fixtures import GATEWAY, adapter_list
from server_process import START_SECONDS, ServerProcess

from tuneloop_core.serving import Adapter
from tuneloop_demo.tiny_model import write_tiny_model

MAX_ACTIVE, MAX_CACHED, TOKENS = 4, 12, 8
READY_SECONDS = 900  # nothing of the start is measured here, and the machine may be busy


class Callers:
    """Threads that ask without pause for adapters that are listed, and check every answer."""

    def __init__(self, server: ServerProcess, letters: dict[str, str]) -> None:
        self._server, self._letters = server, letters
        self.listed: list[str] = []  # engine names that may be asked for
        self._choice = threading.Lock()
        self._asked: dict[int, str] = {}  # what each caller asks for now
        self.seconds: list[float] = []
        self.failed: list[str] = []
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, count: int) -> None:
        """Begin asking."""
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End after the requests in flight."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def leave(self, name: str, listed: list[str]) -> None:
        """Choose only among ``listed`` from now on; returns when nobody waits for an answer by ``name`` any more."""
        with self._choice:
            self.listed = listed
        while name in list(self._asked.values()):
            time.sleep(0.01)

    def _choose(self, number: int, chance: random.Random) -> str:
        """Choosing and noting it is one step: no name is chosen before its removal and asked for after it."""
        with self._choice:
            self._asked[number] = chance.choice(self.listed)
            return self._asked[number]

    def _ask(self, number: int) -> None:
        chance = random.Random(number)
        headers = {"authorization": f"Bearer {self._server.token(GATEWAY)}"}
        with httpx.Client(base_url=self._server.url, headers=headers, timeout=START_SECONDS) as client:
            while not self._stop.is_set():
                name = self._choose(number, chance)
                began = time.perf_counter()
                try:
                    self._judge(name, ask(client, name, f"Say {chance.randrange(1000)} things"))
                except httpx.HTTPError as error:
                    self.failed.append(f"{name}: {type(error).__name__}: {error}")
                self.seconds.append(time.perf_counter() - began)
            del self._asked[number]

    def _judge(self, name: str, answer: httpx.Response) -> None:
        if answer.status_code != 200:
            self.failed.append(f"{name}: {answer.status_code} {answer.text[:500]}")
        elif answer.json()["choices"][0]["text"] != self._letters[name] * TOKENS:
            self.wrong.append(f"{name}: {answer.json()['choices'][0]['text']!r}")


def ask(client: httpx.Client, name: str, prompt: str, tokens: int = TOKENS) -> httpx.Response:
    """One greedy completion."""
    body = {"model": name, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    return client.post("/v1/completions", json=body)


def poke(server: ServerProcess, adapters: Sequence[Adapter]) -> tuple[float, dict[str, str]]:
    """Send the list as the operator does; seconds until the answer, and the states in it."""
    content = adapter_list(*adapters)
    server.list_adapters(content)
    began = time.perf_counter()
    answer = server.operator.post("/tuneloop/adapters", content=content.model_dump_json(by_alias=True))
    took = time.perf_counter() - began
    return took, {item["engineName"]: item["state"] for item in answer.json()["adapters"]}


def load_under_load(server: ServerProcess, adapters: list[Adapter], callers: Callers, loads: int) -> list[float]:
    """Load one and unload another, again and again; seconds of each load."""
    listed, rest, took = adapters[: MAX_CACHED - 2], adapters[MAX_CACHED - 2 :], []
    for _ in range(loads):
        new = rest.pop(0)
        seconds, states = poke(server, [*listed, new])
        if states.get(new.engine_name) != "Loaded":
            sys.exit(f"{new.engine_name} did not load: {server.messages()}")
        took.append(seconds)
        listed.append(new)
        old = listed.pop(0)
        rest.append(old)
        callers.leave(old.engine_name, [item.engine_name for item in listed])
        poke(server, listed)
    return took


def first_tokens(server: ServerProcess, adapters: list[Adapter], state: str, count: int) -> list[float]:
    """Seconds of requests for one token, each of an adapter in this state when it was asked for."""
    took: list[float] = []
    while len(took) < count:
        time.sleep(1.5)  # the server looks once a second
        names = [name for name, found in server.states().items() if found == state]
        name = names[len(took) % len(names)]
        began = time.perf_counter()
        answer = ask(server.gateway, name, "Say", tokens=1)
        took.append(time.perf_counter() - began)
        if answer.status_code != 200:
            sys.exit(f"{name} ({state}): {answer.text}")
    return took


def measure(server: ServerProcess, model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All of it, on a server that has just been started."""
    letters = LETTERS[: options.adapters]
    adapters = [marker_adapter(server.artifacts, model, letter) for letter in letters]
    says = {item.engine_name: letter for item, letter in zip(adapters, letters, strict=True)}
    server.list_adapters(adapter_list(*adapters[: MAX_CACHED - 2]))
    server.wait("health", lambda: server.health() == 200, READY_SECONDS)
    callers = Callers(server, says)
    callers.listed = [item.engine_name for item in adapters[1 : MAX_CACHED - 2]]
    callers.start(options.callers)
    loads = load_under_load(server, adapters, callers, options.loads)
    poke(server, adapters)
    callers.listed = list(says)
    time.sleep(options.mixed_seconds)
    callers.stop()
    parked = [name for name, state in server.states().items() if state == "Parked"]
    return {
        "adapters": len(adapters),
        "requests": len(callers.seconds),
        "failed": callers.failed,
        "wrong": callers.wrong,
        "request_seconds": callers.seconds,
        "load_seconds": loads,
        "parked_at_once": len(parked),
        "first_token_held_seconds": first_tokens(server, adapters, "Loaded", 20),
        "first_token_parked_seconds": first_tokens(server, adapters, "Parked", 20),
        "restarts": int(server.process.poll() is not None),
    }


def percentile(values: list[float], share: float) -> float:
    """By rank; the largest for a share that the sample is too small for."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def table(found: dict[str, Any]) -> str:
    """For people."""
    rows = [f"{'':34} {'p50 ms':>9} {'p99 ms':>9} {'count':>7}"]
    names = {
        "load_seconds": "load of an adapter, under load",
        "request_seconds": f"request of {TOKENS} tokens, meanwhile",
        "first_token_held_seconds": "first token, adapter held",
        "first_token_parked_seconds": "first token, adapter parked",
    }
    for key, words in names.items():
        values = found[key]
        median, worst = statistics.median(values) * 1000, percentile(values, 0.99) * 1000
        rows.append(f"{words:34} {median:9.1f} {worst:9.1f} {len(values):7}")
    rows.append(
        f"{found['adapters']} adapters, {found['parked_at_once']} parked at the end; {found['requests']} requests, "
        f"{len(found['failed'])} failed, {len(found['wrong'])} wrong answers, {found['restarts']} restarts"
    )
    return "\n".join(rows)


def main() -> int:
    """Start a server, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=20, help=f"above {MAX_CACHED}, at most {len(LETTERS)}")
    parser.add_argument("--callers", type=int, default=4, help="requests at once")
    parser.add_argument("--loads", type=int, default=100, help="adapters loaded under load")
    parser.add_argument("--mixed-seconds", type=float, default=20.0, help="with all adapters listed")
    parser.add_argument("--results", type=Path, required=True)
    options = parser.parse_args()
    end_in_order()  # the server leads a session of its own
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_tiny_model(folder / "model")
        lora = {"maxRank": 8, "maxActive": MAX_ACTIVE, "maxCached": MAX_CACHED}
        server = ServerProcess(folder, model, maxModelLength=256, lora=lora)
        server.start()
        with closing(server):
            found = measure(server, model, options)
    print(table(found))
    options.results.mkdir(parents=True, exist_ok=True)
    target = options.results / f"adapters-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    target.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written to {target}")
    for kind in ("failed", "wrong"):
        for words in found[kind]:
            print(f"{kind}: {words}")
    return 1 if found["failed"] or found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
