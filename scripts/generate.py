"""Writes the generated files: ``crds/`` from the API models, the chart's copy of them, and its dashboards.

``--check`` only compares.

``crds/`` is the single source: the chart carries copies because Helm cannot read outside a chart's folder.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import dashboards

ROOT = Path(__file__).resolve().parents[1]
CRDS = ROOT / "crds"
COPIES = ROOT / "charts" / "tuneloop" / "crd-files"
DASHBOARDS = ROOT / "charts" / "tuneloop" / "dashboards"


def generate_crds(*, check: bool) -> int:
    """Run the API package's own generator; its exit status."""
    command = [sys.executable, "-m", "tuneloop_core.api.generate", "--folder", str(CRDS)]
    return subprocess.run([*command, "--check"] if check else command, cwd=ROOT, check=False).returncode


def stale_copies(source: Path, copies: Path) -> list[str]:
    """Names of files that the chart lacks, has too many, or has otherwise than ``source``."""
    wanted = {path.name: path.read_bytes() for path in source.glob("*.yaml")}
    found = {path.name: path.read_bytes() for path in copies.glob("*.yaml")}
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def copy_crds(source: Path, copies: Path) -> None:
    """Make the chart's folder hold exactly the files of ``source``."""
    copies.mkdir(parents=True, exist_ok=True)
    for name in stale_copies(source, copies):
        if (source / name).exists():
            (copies / name).write_bytes((source / name).read_bytes())
        else:
            (copies / name).unlink()


def stale_dashboards() -> dict[str, str]:
    """The dashboards that are not as their table says, by file name."""
    found = {path.name: path.read_text() for path in DASHBOARDS.glob("*.json")}
    return {name: text for name, text in dashboards.files().items() if found.get(name) != text}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write, or with ``--check`` say what has drifted; 1 when something has."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file has drifted")
    check = parser.parse_args(arguments).check
    status = generate_crds(check=check)
    if not check:
        copy_crds(CRDS, COPIES)
        for name, text in stale_dashboards().items():
            (DASHBOARDS / name).write_text(text)
    stale = stale_copies(CRDS, COPIES)
    for name in stale_dashboards():
        print(f"{DASHBOARDS.relative_to(ROOT)}/{name} is not what scripts/dashboards.py makes; run `make generate`")
    for name in stale:
        print(f"{COPIES.relative_to(ROOT)}/{name} differs from crds/{name}; run `make generate` and commit it")
    return status or int(bool(stale or stale_dashboards()))


if __name__ == "__main__":
    sys.exit(main())
