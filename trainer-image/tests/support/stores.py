"""Real servers to export to, on loopback: an S3 server (versitygw on a folder) and an OCI registry (distribution).

The local cluster's own code builds both from pinned Go modules into the cache, once.
``python trainer-image/tests/support/stores.py`` does only that; the tier runner does so before the tests.
"""

import contextlib
import functools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3] / "localcluster/src"))

from tuneloop_localcluster import programs, versions
from tuneloop_localcluster.paths import cache
from tuneloop_localcluster.progress import Progress

START_SECONDS = 60
# "writer:registry-word", bcrypt with the lowest cost.
HTPASSWD = "writer:$2b$04$abcdefghijklmnopqrstuuQCA6qxMh9J5Ep6HDM5raxPg30.XmrcO\n"
WRITER = ("writer", "registry-word")


@dataclass(frozen=True)
class S3Server:
    """Where it listens, the keys of its owner, and the folder that its buckets are folders of."""

    endpoint: str
    access_key_id: str
    secret_access_key: str
    folder: Path

    def add_user(self, access: str, secret: str) -> None:
        """An account that owns nothing and may do nothing."""
        owner = ("--access", self.access_key_id, "--secret", self.secret_access_key, "--endpoint-url", self.endpoint)
        command = [binary("versitygw"), "admin", *owner, "create-user", "-a", access, "-s", secret, "-r", "user"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)


def build() -> None:
    """Build both programs unless the cache has them; takes some minutes, once."""
    programs.build(cache(), [versions.STORES], Progress())


@functools.cache
def binary(name: str) -> str:
    """The path of a built program."""
    build()
    return str(programs.entry(cache(), versions.STORES) / name)


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """An S3 server over ``folder``."""
    for name in ("buckets", "attributes", "users"):
        (folder / name).mkdir(parents=True)
    address = free_address()
    server = S3Server(f"http://{address}", "owner", "owner-word", folder / "buckets")
    keys = ("--access", server.access_key_id, "--secret", server.secret_access_key)
    place = ("posix", "--sidecar", str(folder / "attributes"), str(server.folder))
    command = [binary("versitygw"), *keys, "--port", address, "--iam-dir", str(folder / "users"), "--quiet", *place]
    with _running(command, address, folder / "log"):
        yield server


@contextlib.contextmanager
def registry_server(folder: Path) -> Iterator[str]:
    """An OCI registry that asks for a password; yields HOST:PORT."""
    folder.mkdir(parents=True, exist_ok=True)
    address = free_address()
    (folder / "htpasswd").write_text(HTPASSWD)
    (folder / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/blobs}}}}\n"
        f"http: {{addr: '{address}', secret: for-tests-only}}\n"
        f"auth: {{htpasswd: {{realm: tests, path: {folder}/htpasswd}}}}\n"
    )
    with _running([binary("registry"), "serve", str(folder / "config.yml")], address, folder / "log"):
        yield address


def free_address() -> str:
    """A port of loopback that nobody uses."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def _running(command: list[str], address: str, log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=_environment())
    try:
        _await(process, address, log)
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def _environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "OTEL_TRACES_EXPORTER": "none"}


def _await(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    host, port = address.split(":")
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError(f"{process.args!r} does not listen on {address}:\n{log.read_text(errors='replace')[-2000:]}")


if __name__ == "__main__":
    build()
