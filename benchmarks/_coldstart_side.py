"""One cold start of the real server, in the server image's environment: its phases, CPU seconds and first tokens.

Prints one JSON object. ``PYTHONPATH`` decides whose code is started, so that two versions can take turns.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from _children import end_in_order
from server_process import ServerProcess

from tuneloop_demo.tiny_model import write_tiny_model

WAIT_SECONDS = 900.0
LORA = {"maxRank": 16, "maxActive": 4, "maxCached": 8}


def cpu_seconds(root: int) -> float:
    """User and system time of a process and all below it, ended children that were waited for included."""
    found: dict[int, tuple[int, float]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            found[int(folder.name)] = (int(words[1]), sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK"))
    tree = {root}
    while more := {pid for pid, (parent, _) in found.items() if parent in tree} - tree:
        tree |= more
    return sum(found[pid][1] for pid in tree)


def first_token(server: ServerProcess) -> float:
    """Seconds from a chat request to the first byte of its stream."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "stream": True}
    began = time.monotonic()
    with server.gateway.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(line for line in answer.iter_lines() if line)
    return time.monotonic() - began


def cold_start(model: Path | None, folder: Path, threads: str) -> dict[str, Any]:
    """Start, wait for health, ask twice, stop."""
    server = ServerProcess(folder, model or write_tiny_model(folder / "model"), maxModelLength=2048, lora=LORA)
    began = time.monotonic()
    server.start(OMP_NUM_THREADS=threads)
    try:
        server.wait("health", lambda: server.health() == 200, WAIT_SECONDS)
        took = {"ready": time.monotonic() - began, "cpu": cpu_seconds(server.process.pid)}
        took |= {"firstToken": first_token(server), "secondFirstToken": first_token(server)}
        return took | {"phases": server.status()["phases"]}
    finally:
        server.close()


def main() -> None:
    """Measure one start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--threads", default="2")
    options = parser.parse_args()
    end_in_order()  # the server leads a session of its own
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(cold_start(options.model, Path(name), options.threads)))


if __name__ == "__main__":
    main()
