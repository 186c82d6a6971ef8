"""The train stage as the pods of an indexed Job run it, each a real process tree with torchrun's agent, on loopback.

The pods share the work folder, the model and the data, as they share the store; each has last words of its own.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pods
import pytest
import stores
from tuneloop_core.constants import STAGE_INPUT_ENV
from tuneloop_core.stages import Termination

from tuneloop_trainer.progress import PORT_ENV

SHARED = ("work", "model", "store", "dataset")
DRIVER = Path(__file__).parent / "pod_that_dies.py"
SECONDS = 900


@dataclass
class Pods:
    """The train stage of one job in several pods; start them all, then await each."""

    home: pods.Pod
    input: dict[str, Any]
    running: "list[subprocess.Popen[str]]" = field(default_factory=list)

    def __post_init__(self) -> None:
        self.input = {**self.input, "owner": "FineTuneJob test/job", "rendezvous": stores.free_address()}
        for index in range(self.input["nodes"]):
            self.root(index).mkdir(exist_ok=True)
            for name in SHARED:
                (self.root(index) / name).symlink_to(self.home.root / name)

    def root(self, index: int) -> Path:
        return self.home.root / f"pod-{index}"

    def start(self, *, driven: "dict[int, tuple[str, int]] | None" = None) -> None:
        """Start every pod; those that are ``driven`` (what, count) die or stand still at a chosen place."""
        for index in range(self.input["nodes"]):
            (self.root(index) / "dev").mkdir(exist_ok=True)
            (self.root(index) / "dev/termination-log").unlink(missing_ok=True)
            self.running.append(self._process(index, (driven or {}).get(index)))

    def _process(self, index: int, drive: "tuple[str, int] | None") -> "subprocess.Popen[str]":
        environment = {
            **os.environ,
            STAGE_INPUT_ENV: json.dumps(self.input),
            "TUNELOOP_ROOT": str(self.root(index)),
            "JOB_COMPLETION_INDEX": str(index),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            PORT_ENV: "0",
            "TUNELOOP_TEST_DRIVE": " ".join(map(str, drive or ())),
        }
        command = [sys.executable, str(DRIVER)]
        log = (self.root(index) / "log").open("w")
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True)

    def log(self, index: int) -> str:
        return (self.root(index) / "log").read_text()

    def codes(self) -> list[int]:
        """Wait for all; their exit codes."""
        codes = [process.wait(timeout=SECONDS) for process in self.running]
        self.running.clear()
        return codes

    def finish(self) -> dict[str, Any]:
        """Start all and wait for their success; the leader's result."""
        self.start()
        assert self.codes() == [0] * self.input["nodes"], self.log(0)[-3000:] + self.log(1)[-3000:]
        result = self.said(0).result
        assert result is not None
        return result

    def said(self, index: int) -> Termination:
        return Termination.model_validate_json((self.root(index) / "dev/termination-log").read_bytes())

    def kill(self) -> None:
        for process in self.running:
            process.kill()


def losses(home: pods.Pod) -> list[tuple[int, float]]:
    lines = map(json.loads, (home.paths.work / "train/metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines]


def set_aside(home: pods.Pod, name: str) -> Path:
    return (home.paths.work / "train").rename(home.root / name)


def assert_same_training(home: pods.Pod, alone: dict[str, Any], together: dict[str, Any], before: Path) -> None:
    lines = map(json.loads, (before / "metrics.jsonl").read_text().splitlines())
    expected = [(line["step"], line["loss"]) for line in lines]
    assert [step for step, _ in losses(home)] == [step for step, _ in expected]
    np.testing.assert_allclose([loss for _, loss in losses(home)], [loss for _, loss in expected], rtol=2e-4)
    for key in ("base", "tuned"):
        assert together[key]["evalLoss"] == pytest.approx(alone[key]["evalLoss"], rel=1e-3)
    assert (together["steps"], together["tokens"]) == (alone["steps"], alone["tokens"])
