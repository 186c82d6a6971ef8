"""Runs the test tiers and says what each took beside its budget, so that a slow tier is seen the day it gets slow.

The one entry point of ``make test`` and CI. Uses only the standard library. Never fails a tier for being slow, and
never skips one: a tier that collects nothing fails.
"""

import argparse
import os
import re
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("TUNELOOP_CACHE") or Path.home() / ".cache" / "tuneloop")
LOGS = CACHE / "logs" / "tests"
PYTHON = sys.executable
BIN = Path(PYTHON).parent
COLD_MINUTES = 25
TAIL_LINES = 80


@dataclass(frozen=True)
class Step:
    """One command of a tier. ``pytest`` counts its tests; anything else counts as one check.

    ``live`` also shows the output as it comes; ``prepares`` marks what a warm machine does in no time.
    """

    name: str
    command: tuple[str, ...]
    pytest: bool = False
    live: bool = False
    prepares: bool = False
    env: dict[str, str] = field(default_factory=dict)
    on_failure: tuple[tuple[str, ...], ...] = ()  # commands whose last lines help to see why


@dataclass(frozen=True)
class Outcome:
    """What a step or a tier came to; ``seconds`` is wall time."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    preparing: float = 0.0

    def __add__(self, other: "Outcome") -> "Outcome":
        """Sum two outcomes."""
        return Outcome(
            self.passed + other.passed,
            self.failed + other.failed,
            self.skipped + other.skipped,
            self.seconds + other.seconds,
            self.preparing + other.preparing,
        )


def pytest_step(name: str, *paths: str, live: bool = False) -> Step:
    """Tests in the workspace's own environment."""
    return Step(name, (PYTHON, "-m", "pytest", "-q", *paths), pytest=True, live=live)


def image_steps(part: str, *extras: str) -> list[Step]:
    """Types and tests of an image's package in its own locked environment, which lies in the cache."""
    env = {"UV_PROJECT_ENVIRONMENT": str(CACHE / f"{part.removesuffix('-image')}-venv"), "VIRTUAL_ENV": ""}
    uv, place = str(ROOT / "scripts" / "uv"), ("--quiet", "--directory", part, *extras)
    run = (uv, "run", "--frozen", *place)
    pytest = (*run, "python", "-m", "pytest", "-q", "tests")
    return [
        Step(f"{part} environment", (uv, "sync", "--locked", "--compile-bytecode", *place), prepares=True, env=env),
        Step(f"{part} mypy", (*run, "mypy"), env=env),
        Step(f"{part} tests", pytest, pytest=True, live=True, env=env),
    ]


LINT = [
    Step("guard", (PYTHON, "scripts/guard.py")),
    Step("ruff", (str(BIN / "ruff"), "check", "--quiet", ".")),
    Step("format", (str(BIN / "ruff"), "format", "--check", "--quiet", ".")),
    Step("mypy", (PYTHON, "-m", "mypy")),
    Step("layers", (str(BIN / "lint-imports"),)),
    Step("generated files", (PYTHON, "scripts/generate.py", "--check")),
]

KUBECTL = (str(CACHE / "bin" / "kubectl"), "--kubeconfig", str(CACHE / "cluster" / "admin.kubeconfig"))
CLUSTER = (
    (*KUBECTL, "get", "pods", "--all-namespaces", "-o", "wide"),
    (*KUBECTL, "get", "finetunejobs.tuneloop.dev,modeldeployments.tuneloop.dev", "--all-namespaces", "-o", "wide"),
    (*KUBECTL, "get", "events", "--all-namespaces", "--sort-by=.metadata.creationTimestamp"),
    (*KUBECTL, "logs", "-n", "tuneloop-system", "-l", "app.kubernetes.io/part-of=tuneloop", "--prefix", "--tail=40"),
)

# One e2e test may build images, compile Kubernetes and wait five minutes for nothing to happen.
E2E_SECONDS = 3000

# The chart's tests render with the real helm; building it takes minutes, once per machine.
HELM = Step("helm", (PYTHON, "tests/support/chart_render.py"), prepares=True)
# Servers that exports are tested against, built into the cache.
STORES = Step("S3 server and registry", (PYTHON, "trainer-image/tests/support/stores.py"), prepares=True)

# Compiled once per machine, for longer than one test may take.
API_SERVER = Step("API server", (PYTHON, "-m", "tuneloop_localcluster", "up", "--api-only"), live=True, prepares=True)

# These tests wait more than they work: for a Lease to run out, for a process to find that its watch is dead.
TWO_AT_ONCE = ("--numprocesses=2", "--dist=loadfile")

TIERS: dict[str, list[Step]] = {
    "lint": LINT,
    "fast": [*LINT, HELM, pytest_step("unit and golden", "tests/unit")],
    "apiserver": [API_SERVER, pytest_step("apiserver", *TWO_AT_ONCE, "tests/apiserver", live=True)],
    "trainer": [STORES, *image_steps("trainer-image"), *image_steps("server-image", "--extra", "cpu")],
    "e2e": [replace(pytest_step("e2e", f"--timeout={E2E_SECONDS}", "tests/e2e", live=True), on_failure=CLUSTER)],
}
ALL = ("fast", "apiserver", "trainer", "e2e")


def read_budgets(text: str) -> dict[str, float]:
    """Minutes per tier, from the table rows ``| tier | minutes | ... |`` of tests/README.md."""
    rows = re.findall(r"^\|\s*(\w+)\s*\|\s*(\d+(?:\.\d+)?)\s*\|", text, flags=re.MULTILINE)
    return {name: float(minutes) for name, minutes in rows}


def count_junit(path: Path) -> Outcome:
    """Count the tests in a pytest junit file; nothing is counted when pytest did not get as far as writing one."""
    if not path.exists():
        return Outcome()
    suites = ET.parse(path).getroot().iter("testsuite")
    total = Outcome()
    for suite in suites:
        skipped = int(suite.get("skipped", "0"))
        failed = int(suite.get("failures", "0")) + int(suite.get("errors", "0"))
        total += Outcome(int(suite.get("tests", "0")) - failed - skipped, failed, skipped)
    return total


def judge(returncode: int, counted: Outcome | None) -> Outcome:
    """Turn an exit status and a test count into an outcome; a command that fails always shows as a failure."""
    if counted is None:
        return Outcome(passed=int(returncode == 0), failed=int(returncode != 0))
    if returncode != 0 and counted.failed == 0:
        return counted + Outcome(failed=1)
    return counted


def slug(tier: str, step: Step) -> str:
    """Return a file name for the step's log."""
    return f"{tier}-{re.sub(r'[^a-z0-9]+', '-', step.name.lower())}"


def execute(command: Sequence[str], env: dict[str, str], log: Path, *, live: bool) -> int:
    """Run a command with its output in ``log``, and on the screen too when ``live``; the exit status."""
    with (
        log.open("wb") as kept,
        subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            kept.write(line)
            kept.flush()
            if live:
                sys.stdout.buffer.write(line)
                sys.stdout.flush()
    return process.returncode


def heartbeat(label: str, stop: threading.Event) -> None:
    """Say once a minute that a quiet step is still at work."""
    minutes = 0
    while not stop.wait(60):
        minutes += 1
        print(f"  {label}: {minutes} min so far", flush=True)


def run_step(tier: str, step: Step) -> Outcome:
    """Run one step, print its line and, when it failed, the tail of its log."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log, junit = LOGS / f"{slug(tier, step)}.log", LOGS / f"{slug(tier, step)}.xml"
    junit.unlink(missing_ok=True)
    command = (*step.command, f"--junitxml={junit}") if step.pytest else step.command
    started, stop = time.monotonic(), threading.Event()
    if not step.live:
        threading.Thread(target=heartbeat, args=(step.name, stop), daemon=True).start()
    try:
        returncode = execute(command, step.env, log, live=step.live)
    finally:
        stop.set()
    seconds = time.monotonic() - started
    outcome = judge(returncode, count_junit(junit) if step.pytest else None)
    report_step(step, outcome, seconds, log)
    return outcome + Outcome(seconds=seconds, preparing=seconds if step.prepares else 0.0)


def report_step(step: Step, outcome: Outcome, seconds: float, log: Path) -> None:
    """Print the step's line; a failure shows the end of its log."""
    verdict = "ok" if outcome.failed == 0 else "FAILED"
    counts = f"{outcome.passed} passed, {outcome.failed} failed" if step.pytest else ""
    skipped = f", {outcome.skipped} skipped" if outcome.skipped else ""
    print(f"  {step.name:<28} {verdict:<7} {seconds:7.1f} s  {counts}{skipped}".rstrip(), flush=True)
    if outcome.failed and not step.live:
        print_tail(log)
    if outcome.failed:
        print(f"  the whole log: {log}", flush=True)
        explain(step)


def explain(step: Step) -> None:
    """Show what the step's own commands say about the failure; a command that fails itself shows its words."""
    for command in step.on_failure:
        print(f"  $ {' '.join(command[:1] + command[len(KUBECTL) :])}", flush=True)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"    {error}", flush=True)
            continue
        print_lines(done.stdout + done.stderr)


def print_tail(log: Path) -> None:
    """Print the last lines of a log."""
    print_lines(log.read_text(errors="replace"))


def print_lines(text: str) -> None:
    """Print the last lines of a text, indented."""
    print("\n".join(f"    {line}" for line in text.splitlines()[-TAIL_LINES:]), flush=True)


def run_tier(tier: str) -> Outcome:
    """Run all steps of a tier, also after one failed: a whole list is worth more than its first line."""
    print(f"\n{tier}", flush=True)
    total = Outcome()
    for step in TIERS[tier]:
        total += run_step(tier, step)
    return total


def tier_line(tier: str, outcome: Outcome, budget: float | None) -> str:
    """One row of the closing table: what the tier took beside its budget, in minutes."""
    minutes = outcome.seconds / 60
    line = f"{tier:<10} {outcome.passed:>5} passed {outcome.failed:>4} failed  {minutes:6.1f} min"
    if outcome.preparing >= 1:
        line += f" ({outcome.preparing / 60:.1f} of it preparing)"
    if budget is None:
        return line
    over = "" if minutes <= budget else f"  OVER BUDGET (a cold machine may add {COLD_MINUTES})"
    return f"{line} of {budget:.0f}{over}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tiers that were asked for; 0 when nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier", action="append", choices=list(TIERS), help="only this tier; may be repeated")
    tiers = parser.parse_args(arguments).tier or list(ALL)
    budgets = read_budgets((ROOT / "tests" / "README.md").read_text())
    outcomes = {tier: run_tier(tier) for tier in tiers}
    print()
    for tier, outcome in outcomes.items():
        print(tier_line(tier, outcome, budgets.get(tier)))
    total = sum(outcomes.values(), Outcome())
    print(f"{total.passed} passed, {total.failed} failed", flush=True)
    return int(total.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
