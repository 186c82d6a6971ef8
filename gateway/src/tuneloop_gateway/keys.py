"""``python -m tuneloop_gateway.keys new [--name app-1]``: a new key, and its line for ``spec.access.keys``.

The key goes to standard output once and is kept nowhere; the resource gets only its hash. Never reads the cluster.
"""

import argparse
import hashlib
import re
import secrets
import sys
from collections.abc import Sequence
from typing import Final

PREFIX: Final = "tl-"  # so that scanners for leaked secrets can know one
BYTES: Final = 32
NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def new_key() -> str:
    """256 random bits, as text that needs no quoting anywhere."""
    return PREFIX + secrets.token_urlsafe(BYTES)


def entry(name: str, key: str) -> str:
    """The line for ``spec.access.keys``."""
    return f'- {{name: {name}, hash: "sha256:{hashlib.sha256(key.encode()).hexdigest()}"}}'


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"'{text}' must be 1 to 63 lower-case letters, digits and '-', such as app-1")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the key and its line; what they are goes to standard error, so that both can be piped."""
    parser = argparse.ArgumentParser(prog="python -m tuneloop_gateway.keys", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    new = commands.add_parser("new", help="make a key")
    new.add_argument("--name", type=_name, default="app-1", help="the holder's name in logs and metrics (app-1)")
    chosen = parser.parse_args(arguments)
    key = new_key()
    print("The key, shown this once; give it to the application:", file=sys.stderr)
    print(key, flush=True)
    print("Its line for spec.access.keys of the ModelDeployment:", file=sys.stderr)
    print(entry(chosen.name, key), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
