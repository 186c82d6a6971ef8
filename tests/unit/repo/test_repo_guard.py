"""The guard names each way of breaking the house, and this repository is clean."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def guard() -> ModuleType:
    spec = importlib.util.spec_from_file_location("repo_guard", ROOT / "scripts" / "guard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"operator/__init__.py": ""}, "operator/__init__.py exists"),
        ({"tests/unit/__init__.py": ""}, "tests/unit/__init__.py exists"),
        ({"tests/unit/a/test_x.py": "", "tests/unit/b/test_x.py": ""}, "2 files under tests/ are called test_x.py"),
        ({"core/src/big.py": "x = 1\n" * 401}, "core/src/big.py has 401 lines"),
        ({"README.md": "[a](docs/absent.md#b)"}, "README.md links to docs/absent.md, which is not there"),
        ({"docs/README.md": "[a](a.md)", "docs/a.md": "", "docs/b.md": ""}, "docs/b.md is in no index"),
        (
            {"docs/install.md": "kubectl -n a get ftj,mdep -w"},
            "says `kubectl -n a get ftj,mdep -w`: kubectl watches one",
        ),
        ({"README.md": "kubectl get ftj,mdep\nkubectl get ftj -w  # then mdep, adapters"}, None),
        ({"README.md": "[a](https://x.example) [b](#b) [c](docs/a.md#c)", "docs/a.md": ""}, None),
        ({"core/src/fine.py": "x = 1\n" * 400, "core/.venv/lib/__init__.py": "x\n" * 999}, None),
    ],
)
def test_each_problem_is_named(guard: ModuleType, tmp_path: Path, files: dict[str, str], expected: str | None) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = guard.problems(tmp_path)
    if expected is None:
        assert found == []
    else:
        assert len(found) == 1
        assert expected in found[0]


def test_the_standard_operator_module_is_not_shadowed() -> None:
    import operator  # noqa: PLC0415 - the point is what this import finds here

    assert operator.add(1, 2) == 3
    assert not (ROOT / "operator" / "__init__.py").exists()
