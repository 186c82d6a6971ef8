"""Which tasks lm-eval knows, by name, without loading one: a look at the first words of its 14,000 files.

lm-eval's own index parses them all, which takes a quarter of a minute of a pod; here a name is only located, and
lm-eval parses the one folder that it lies in. Never imports lm-eval's code.
"""

import difflib
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

NAME = re.compile(
    rb"""^["']?(task|group)["']?[ \t]*:[ \t]*["']?([A-Za-z0-9_.+:@-]+)["']?[ \t]*(?:\#.*)?\r?$""", re.MULTILINE
)
NEAR = 5


@cache
def catalogue() -> dict[str, Path]:
    """Name of each task and group: the file that defines it."""
    found: dict[str, Path] = {}
    for path in sorted(_root().glob("**/*.yaml")):
        names = {key: name.decode() for key, name in NAME.findall(path.read_bytes())}
        name = names.get(b"group") or names.get(b"task")
        if name:
            found.setdefault(name, path)
    return found


def folder_of(name: str) -> Path | None:
    """The folder right below lm-eval's tasks in which a name is defined: groups lie there with their members."""
    path = catalogue().get(name)
    return None if path is None else _root() / path.relative_to(_root()).parts[0]


def near(name: str) -> list[str]:
    """Names that a misspelt one may mean: close ones, else those that contain it."""
    names = list(catalogue())
    close = difflib.get_close_matches(name, names, n=NEAR, cutoff=0.75)
    holding = sorted((each for each in names if name.lower() in each.lower()), key=len)
    return list(dict.fromkeys([*close, *holding]))[:NEAR]


def _root() -> Path:
    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise RuntimeError("lm-eval is not installed in this image")
    return Path(spec.origin).parent / "tasks"
