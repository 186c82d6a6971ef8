"""A real server for tests: ``python -m tuneloop_server`` on a tiny random model, on a free port."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from server_fixtures import GATEWAY, OPERATOR, Signer, guard_config, write_json

from tuneloop_core.serving import AdapterList

START_SECONDS = 240  # generous: three other builds may share the machine
WAIT_SECONDS = 120


class ServerProcess:
    """One server, its files and its callers."""

    def __init__(self, folder: Path, model: Path, **engine: Any) -> None:
        self.signer = Signer("test")
        self.etc = folder / "etc"
        self.artifacts = folder / "artifacts"
        self.etc.mkdir()
        self.artifacts.mkdir()
        self.log = folder / "log"
        # A short name, for the engine's sockets lie in it.
        self.temporary = tempfile.TemporaryDirectory(prefix="tl-", ignore_cleanup_errors=True)
        self.port = _free_port()
        write_json(self.etc / "guard.json", guard_config(self.signer))
        config = {"servedName": "tiny", "modelPath": str(model), "engine": engine, "accelerators": 0}
        (self.etc / "server.json").write_text(json.dumps(config))
        self.list_adapters(AdapterList())
        self.gateway = self._caller(GATEWAY)
        self.operator = self._caller(OPERATOR)
        self.nobody = httpx.Client(base_url=self.url, timeout=30)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def token(self, subject: str) -> str:
        """A good token."""
        return self.signer.token(subject)

    def list_adapters(self, content: AdapterList) -> None:
        """The ConfigMap changes."""
        write_json(self.etc / "adapters.json", content)

    def start(self, **environment: str) -> None:
        """Start it; does not wait."""
        variables = {
            **os.environ,
            "TUNELOOP_SERVER_CONFIG": str(self.etc / "server.json"),
            "TUNELOOP_SERVER_ARTIFACTS": str(self.artifacts),
            "TUNELOOP_SERVER_PORT": str(self.port),
            "TUNELOOP_SERVER_SETTLE_SECONDS": "1",
            "TUNELOOP_SERVER_GRACE_SECONDS": str(START_SECONDS),
            "TMPDIR": self.temporary.name,
            "OMP_NUM_THREADS": "1",  # threads of a busy machine wait for each other
            **environment,
        }
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "tuneloop_server"]
            self.process = subprocess.Popen(
                command, env=variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=WAIT_SECONDS)

    def close(self) -> None:
        """End the callers' connections, and the server where it still runs, with its engine's process."""
        for caller in (self.gateway, self.operator, self.nobody):
            caller.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # killed alone, the server would leave its engine running
        self.process.wait()
        self.temporary.cleanup()

    def health(self) -> int:
        """The status of /health; 0 while nobody listens."""
        try:
            return self.nobody.get("/health").status_code
        except httpx.TransportError:
            return 0

    def status(self) -> dict[str, Any]:
        """GET /tuneloop/status as the operator."""
        answer = self.operator.get("/tuneloop/status")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def states(self) -> dict[str, str]:
        """Adapter states by engine name."""
        return {item["engineName"]: item["state"] for item in self.status()["adapters"]}

    def messages(self) -> dict[str, str]:
        """Adapter messages by engine name."""
        return {item["engineName"]: item["message"] for item in self.status()["adapters"]}

    def wait(self, what: str, condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
        """Wait, and say for what when it does not come, with the end of the log."""
        deadline = time.monotonic() + seconds
        while not condition():
            running = self.process.poll() is None
            if time.monotonic() >= deadline or not running:
                tail = self.log.read_text(errors="replace")[-4000:]
                raise AssertionError(f"waited {seconds} s for: {what} (process running: {running}). Log:\n{tail}")
            time.sleep(0.2)

    def complete(self, model: str, prompt: str = "The colour of the sky", **options: Any) -> str:
        """A greedy completion as the gateway asks for it."""
        body = {"model": model, "prompt": prompt, "max_tokens": 16, "temperature": 0, "ignore_eos": True, **options}
        answer = self.gateway.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    def _caller(self, subject: str) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.token(subject)}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=START_SECONDS)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
