"""The gateway as a process of its own, for tests that need the whole of it: settings, watches, signals."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway_world import KEY
from openai import AsyncOpenAI
from ports import free_port


@dataclass
class Process:
    """The gateway's process and its ports."""

    process: asyncio.subprocess.Process
    port: int
    internal: int
    log: Path

    def client(self, namespace: str = "team") -> AsyncOpenAI:
        """The OpenAI client for a namespace."""
        return AsyncOpenAI(
            base_url=f"http://127.0.0.1:{self.port}/{namespace}/v1", api_key=KEY, max_retries=0, timeout=30
        )

    async def models(self, namespace: str = "team") -> list[str]:
        """The models it lists."""
        async with self.client(namespace) as client:
            return [model.id for model in (await client.models.list()).data]

    async def becomes(self, models: list[str], namespace: str = "team", seconds: float = 60.0) -> None:
        """Wait until it lists these models; none is also the answer where no key opens anything."""
        end, found = asyncio.get_running_loop().time() + seconds, None
        while asyncio.get_running_loop().time() < end:
            try:
                found = await self.models(namespace)
            except Exception as error:
                found = [] if "401" in str(error) else error
            if found == models:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"waited {seconds} s for the models {models}, found {found}\n{self.log.read_text()}")


@contextlib.asynccontextmanager
async def started(tmp_path: Path, kubeconfig: Path, **settings: Any) -> AsyncIterator[Process]:
    """``python -m tuneloop_gateway`` on free ports; killed at the end if it still runs."""
    (tmp_path / "settings.yaml").write_text(json.dumps({"images": {"trainer": "t", "server": "s"}} | settings))
    ports = free_port(), free_port()
    env = os.environ | {
        "TUNELOOP_SETTINGS": str(tmp_path / "settings.yaml"),
        "KUBECONFIG": str(kubeconfig),
        "TUNELOOP_GATEWAY_HOST": "127.0.0.1",
        "TUNELOOP_GATEWAY_PORT": str(ports[0]),
        "TUNELOOP_GATEWAY_INTERNAL_PORT": str(ports[1]),
        "TUNELOOP_GATEWAY_LAME_SECONDS": os.environ.get("TUNELOOP_GATEWAY_LAME_SECONDS", "0.5"),
        "POD_NAME": "gateway-7",
    }
    log, command = tmp_path / "log", [sys.executable, "-m", "tuneloop_gateway"]
    with log.open("wb") as out, (tmp_path / "access.log").open("wb") as lines:
        process = await asyncio.create_subprocess_exec(*command, env=env, stdout=lines, stderr=out)
    try:
        yield Process(process, *ports, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
