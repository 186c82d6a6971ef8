"""``python -m tuneloop_core.api.generate``: writes ``crds/`` from the models, or with ``--check`` tells the drift.

The one program of the API package; all it does is read and write those files.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from tuneloop_core.api.crd import KINDS, manifest
from tuneloop_core.constants import GROUP

_NUMBER = re.compile(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?")
_HEADER = "# Generated from core/src/tuneloop_core/api by `make generate`; do not edit.\n"


class _Dumper(yaml.SafeDumper):
    """Spells repeated values out: anchors in a CRD help nobody."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Quotes what Go's YAML would read as a number: PyYAML writes the text ``2e-4`` bare."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="'" if _NUMBER.fullmatch(text) else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def rendered() -> dict[str, str]:
    """File name to text of each CRD."""
    return {
        f"{kind.plural}.{GROUP}.yaml": _HEADER
        + yaml.dump(manifest(kind), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
        for kind in KINDS
    }


def drift(folder: Path) -> list[str]:
    """Names of files that differ from what the models say."""
    files = rendered()
    return [name for name, text in files.items() if not _same(folder / name, text)]


def _same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or check them; 1 when they have drifted."""
    parser = argparse.ArgumentParser(prog="generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file has drifted")
    parser.add_argument("--folder", type=Path, default=Path("crds"), help="where the files lie (default: crds)")
    options = parser.parse_args(arguments)
    if options.check:
        stale = drift(options.folder)
        for name in stale:
            sys.stderr.write(f"{options.folder / name} differs from the models; run `make generate` and commit it\n")
        return 1 if stale else 0
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, text in rendered().items():
        (options.folder / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
