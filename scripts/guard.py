"""Refuses what would break the house in ways that no linter names well.

``operator/__init__.py`` would shadow the standard library's ``operator``; ``__init__.py`` below ``tests/`` breaks
pytest's importlib mode; two test files of one name hide each other; a Python file over 400 lines holds more than one
idea; a link of the documentation that leads nowhere, or a page that no index names, is found by nobody; a command that
kubectl refuses is what a newcomer tries first. Never changes anything.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 400
PARTS = (
    "core",
    "operator",
    "gateway",
    "localcluster",
    "demo",
    "trainer-image",
    "server-image",
    "scripts",
    "benchmarks",
    "tests",
)
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
"""The path of a Markdown link within the repository, without its anchor."""
WATCH = re.compile(r"kubectl .*\bget \S+,\S+ .*(?:-w|--watch)\b")
"""A watch of several kinds, which kubectl refuses: "you may only specify a single resource type"."""
TOLD = ("*.md", "docs/**/*.md", "examples/**/*", "charts/*/templates/NOTES.txt")
"""Where users are told what to type."""
IGNORED = {".venv", "__pycache__", "node_modules"}


def python_files(root: Path) -> list[Path]:
    """Every Python file of our own, environments excluded."""
    found = (path for part in PARTS for path in (root / part).rglob("*.py"))
    return sorted(path for path in found if not IGNORED.intersection(path.parts))


def shadowing(root: Path) -> Iterable[str]:
    """Yield what would shadow the standard library's operator module."""
    if (root / "operator" / "__init__.py").exists():
        yield "operator/__init__.py exists: it shadows the standard library's operator module. Remove it."


def stray_inits(root: Path, files: Iterable[Path]) -> Iterable[str]:
    """Yield packages below tests/, which importlib mode does not want."""
    for path in files:
        if path.name == "__init__.py" and "tests" in path.relative_to(root).parts:
            yield f"{path.relative_to(root)} exists: tests are not packages. Remove it."


def doubled_names(root: Path, files: Iterable[Path]) -> Iterable[str]:
    """Yield test files that share a name within tests/."""
    names = Counter(path.name for path in files if (root / "tests") in path.parents and path.name.startswith("test_"))
    for name, count in sorted(names.items()):
        if count > 1:
            yield f"{count} files under tests/ are called {name}: give each its part's name."


def long_files(root: Path, files: Iterable[Path]) -> Iterable[str]:
    """Yield Python files over the limit."""
    for path in files:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_LINES:
            yield f"{path.relative_to(root)} has {lines} lines, {MAX_LINES} are allowed: split it by idea."


def dead_links(root: Path) -> Iterable[str]:
    """Yield links between our own pages whose file is not there."""
    for page in (*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("tests/*.md")):
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            if not (page.parent / target).exists():
                yield f"{page.relative_to(root)} links to {target}, which is not there."


def unlisted_pages(root: Path) -> Iterable[str]:
    """Yield pages that the index of their folder does not link."""
    for index in root.glob("docs/**/README.md"):
        listed = set(LINK.findall(index.read_text(encoding="utf-8")))
        for page in sorted(index.parent.glob("*.md")):
            if page != index and page.name not in listed:
                yield f"{page.relative_to(root)} is in no index: link it in {index.relative_to(root)}."


def refused_watches(root: Path) -> Iterable[str]:
    """Yield files that tell users to watch several kinds by one kubectl."""
    for page in (found for pattern in TOLD for found in sorted(root.glob(pattern)) if found.is_file()):
        for command in WATCH.findall(page.read_text(encoding="utf-8")):
            yield f"{page.relative_to(root)} says `{command}`: kubectl watches one kind at a time."


def problems(root: Path) -> list[str]:
    """Everything that is wrong below ``root``, as sentences."""
    files = python_files(root)
    return [
        *shadowing(root),
        *stray_inits(root, files),
        *doubled_names(root, files),
        *long_files(root, files),
        *dead_links(root),
        *unlisted_pages(root),
        *refused_watches(root),
    ]


def main() -> int:
    """Print the problems; 0 when there are none."""
    found = problems(ROOT)
    print("\n".join(found))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
