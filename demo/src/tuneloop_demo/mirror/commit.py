"""``python -m tuneloop_demo.mirror.commit models ORG/NAME FOLDER`` prints the commit that the mirror gives a folder."""

import sys
from pathlib import Path

from tuneloop_demo.mirror.repos import read_folder


def main() -> None:
    """Print the commit."""
    kind, repo_id, folder = sys.argv[1:]
    print(read_folder("datasets" if kind == "datasets" else "models", repo_id, Path(folder)).commit)


if __name__ == "__main__":
    main()
