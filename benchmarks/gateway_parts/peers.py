"""Other proxies before the same upstream: nginx, a plain Starlette and httpx one, the Rust vllm-router and smg.

The three from PyPI live in an environment of their own in the cache, made when first asked for, since none of them is
a dependency of Tuneloop. nginx is Debian's package, on PATH or named by NGINX; without it its column is left out. Each
runs with one process, no key check, no limits and its own defaults, but for what would not let it start here.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from _children import run, running
from gateway_parts.sides import PARTS, Side, family, free_port, wait

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("TUNELOOP_CACHE") or Path.home() / ".cache" / "tuneloop")
ENVIRONMENT = CACHE / "bench-peers"
PINNED = (
    "vllm-router==0.1.17", "smg==1.13.0", "starlette==1.10.0", "httpx==0.28.1", "uvicorn==0.54.0", "uvloop==0.23.0",
    "httptools==0.9.0",
)  # fmt: skip

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

Peer = Callable[[Path, int], "contextlib.AbstractContextManager[Side | None]"]


def prepare() -> None:
    """The environment of those from PyPI, at the pinned versions."""
    uv = str(ROOT / "scripts/uv")
    environment = {**os.environ, "VIRTUAL_ENV": str(ENVIRONMENT)}
    if not (ENVIRONMENT / "bin/python").exists():
        run([uv, "venv", "--quiet", str(ENVIRONMENT)], check=True)
    run([uv, "pip", "install", "--quiet", *PINNED], check=True, env=environment)


@contextlib.contextmanager
def nginx(folder: Path, behind: int) -> Iterator[Side | None]:
    """nginx as a reverse proxy without buffering, one worker; None if it is not installed."""
    program = os.environ.get("NGINX") or shutil.which("nginx")
    if not program:
        yield None
        return
    port = free_port()
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, upstream=behind, port=port))
    with running([program, "-p", str(folder), "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL) as process:
        wait(port, "nginx")
        yield Side("nginx", port, family(process.pid))


@contextlib.contextmanager
def _from_pypi(name: str, command: list[str], port: int, folder: Path) -> Iterator[Side]:
    """One of those from PyPI."""
    with (
        (folder / f"{name}.log").open("wb") as log,
        running([str(ENVIRONMENT / "bin" / command[0]), *command[1:]], stdout=log, stderr=log) as process,
    ):
        wait(port, name)
        yield Side(name, port, family(process.pid))


def starlette(folder: Path, behind: int) -> "contextlib.AbstractContextManager[Side]":
    """The proxy that is written first: Starlette, httpx, uvicorn with uvloop."""
    port = free_port()
    command = ["python", str(PARTS / "plain_proxy.py"), "--port", str(port), "--upstream", str(behind)]
    return _from_pypi("starlette", command, port, folder)


def vllm_router(folder: Path, behind: int) -> "contextlib.AbstractContextManager[Side]":
    """The Rust router of the vLLM project."""
    port = free_port()
    words = ["--host", "127.0.0.1", "--port", str(port), "--worker-urls", f"http://127.0.0.1:{behind}"]
    quiet = ["--policy", "round_robin", "--log-level", "error", "--prometheus-port", str(free_port())]
    return _from_pypi("vllm-router", ["vllm-router", *words, *quiet], port, folder)


def smg(folder: Path, behind: int) -> "contextlib.AbstractContextManager[Side]":
    """What became of sglang-router."""
    port = free_port()
    words = ["--host", "127.0.0.1", "--port", str(port), "--worker-urls", f"http://127.0.0.1:{behind}"]
    quiet = ["--policy", "round_robin", "--log-level", "error", "--prometheus-port", str(free_port())]
    return _from_pypi("smg", ["smg", "launch", *words, *quiet], port, folder)


PEERS: dict[str, Peer] = {"nginx": nginx, "starlette": starlette, "vllm-router": vllm_router, "smg": smg}
