"""``python -m tuneloop_demo.mirror --root /content --port 8080``: serve a folder tree as a hub."""

import argparse
import logging
from pathlib import Path

from aiohttp import web

from tuneloop_demo.mirror.app import create_app


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--root", type=Path, default=Path("/content"), help="holds models/ORG/NAME and datasets/ORG/NAME"
    )
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    web.run_app(create_app(arguments.root), port=arguments.port, access_log_format='%r %s %b "%{User-Agent}i"')


if __name__ == "__main__":
    main()
