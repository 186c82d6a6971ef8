"""Every lock knows what our own packages ask for today: a stale one fails here, not an hour later in an image build."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[3]
LOCKS = ("uv.lock", "trainer-image/uv.lock", "server-image/uv.lock")


def _own_packages() -> list[tuple[str, str, Path]]:
    """Lock, package and pyproject of each of our own packages in each lock."""
    found = []
    for lock in LOCKS:
        for package in tomllib.loads((ROOT / lock).read_text(encoding="utf-8"))["package"]:
            place = package["source"].get("editable")
            if place:
                pyproject = ((ROOT / lock).parent / place / "pyproject.toml").resolve()
                found.append((lock, package["name"], pyproject))
    return found


def _asked_for(pyproject: Path) -> set[tuple[str, str, str]]:
    """Name, versions and extra of each dependency that a package asks for."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    by_extra = {"": project.get("dependencies", [])} | project.get("optional-dependencies", {})
    asked = [(Requirement(line), extra) for extra, lines in by_extra.items() for line in lines]
    return {(canonicalize_name(each.name), str(each.specifier), extra) for each, extra in asked}


def _locked(lock: str, name: str) -> set[tuple[str, str, str]]:
    """The same, as the lock remembers it."""
    packages = tomllib.loads((ROOT / lock).read_text(encoding="utf-8"))["package"]
    [package] = [each for each in packages if each["name"] == name and "editable" in each["source"]]
    dependencies: list[dict[str, Any]] = package.get("metadata", {}).get("requires-dist", [])
    return {
        (each["name"], _canonical(each.get("specifier", "")), _extra(each.get("marker", ""))) for each in dependencies
    }


def _canonical(specifier: str) -> str:
    return str(Requirement(f"x{specifier}").specifier)


def _extra(marker: str) -> str:
    return marker.partition("extra == '")[2].rstrip("'") if "extra ==" in marker else ""


def test_the_locks_hold_our_own_packages() -> None:
    assert {lock for lock, _, _ in _own_packages()} == set(LOCKS)


@pytest.mark.parametrize(
    ("lock", "name", "pyproject"), _own_packages(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_lock_is_current(lock: str, name: str, pyproject: Path) -> None:
    assert _locked(lock, name) == _asked_for(pyproject), f"{lock} is stale: run `uv lock` in {Path(lock).parent}/"
