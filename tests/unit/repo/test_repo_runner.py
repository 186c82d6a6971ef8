"""The tier runner counts what ran, and never turns a failure into silence."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tuneloop_test_runner", ROOT / "tests" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_tier_has_a_budget_in_the_readme(runner: ModuleType) -> None:
    budgets = runner.read_budgets((ROOT / "tests" / "README.md").read_text())
    assert set(budgets) == set(runner.ALL)
    assert budgets["fast"] <= 3
    assert sum(budgets.values()) + runner.COLD_MINUTES <= 90, "what CI gives to a cold machine"


def test_e2e_is_last(runner: ModuleType) -> None:
    assert runner.ALL[-1] == "e2e"


@pytest.mark.parametrize(
    ("returncode", "counted", "expected"),
    [
        (0, None, (1, 0)),
        (1, None, (0, 1)),
        (0, (5, 0), (5, 0)),
        (1, (5, 2), (5, 2)),
        (5, (0, 0), (0, 1)),  # pytest collected nothing
        (2, (3, 0), (3, 1)),  # pytest was interrupted
    ],
)
def test_judge(runner: ModuleType, returncode: int, counted: tuple[int, int] | None, expected: tuple[int, int]) -> None:
    outcome = runner.judge(returncode, None if counted is None else runner.Outcome(*counted))
    assert (outcome.passed, outcome.failed) == expected


def test_junit_counts(runner: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    path.write_text('<testsuites><testsuite tests="9" failures="2" errors="1" skipped="1"/></testsuites>')
    outcome = runner.count_junit(path)
    assert (outcome.passed, outcome.failed, outcome.skipped) == (5, 3, 1)
    assert runner.count_junit(tmp_path / "absent.xml") == runner.Outcome()


def test_a_tier_that_runs_over_is_named_not_failed(runner: ModuleType) -> None:
    outcome = runner.Outcome(passed=3, seconds=240)
    assert "OVER BUDGET" in runner.tier_line("fast", outcome, 3)
    assert "OVER BUDGET" not in runner.tier_line("fast", outcome, 5)


def test_a_failing_step_shows_the_end_of_its_log(
    runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "LOGS", tmp_path)
    step = runner.Step("broken", (sys.executable, "-c", "print('the cause'); raise SystemExit(3)"))
    outcome = runner.run_step("fast", step)
    assert (outcome.passed, outcome.failed) == (0, 1)
    assert "the cause" in capsys.readouterr().out


def test_a_failing_step_runs_its_explanations(runner: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    command = (sys.executable, "-c", "print('what the cluster says')")
    runner.explain(runner.Step("broken", (), on_failure=(command, ("tuneloop-no-such-program",))))
    said = capsys.readouterr().out
    assert "what the cluster says" in said
    assert "tuneloop-no-such-program" in said
