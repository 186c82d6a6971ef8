"""Stages run as their pods would run them, in this process, on folders below one root."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tuneloop_core.constants import STAGE_INPUT_ENV
from tuneloop_core.stages import Stage, Termination

from tuneloop_trainer import check, fetch, publish, train
from tuneloop_trainer.paths import Paths
from tuneloop_trainer.progress import PORT_ENV
from tuneloop_trainer.stage import always_holds, leave_all, run_stage

MODULES = {Stage.FETCH: fetch, Stage.CHECK: check, Stage.TRAIN: train, Stage.PUBLISH: publish}
TRAINING = {"epochs": 2, "tokensPerStep": 768, "learningRate": "1e-2"}
EVALUATION = {"generations": 4, "maxNewTokens": 12, "maxSamples": 20}


def load_tiny_model() -> ModuleType:
    """The demo's builder of tiny models; its package is not installed here, and the file needs nothing of it."""
    path = Path(__file__).parents[3] / "demo/src/tuneloop_demo/tiny_model.py"
    spec = importlib.util.spec_from_file_location("tiny_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["tiny_model"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Pod:
    """The mounts of one job."""

    root: Path
    monkeypatch: pytest.MonkeyPatch

    def __post_init__(self) -> None:
        for folder in ("store/models", "store/datasets", "store/artifacts", "work", "model", "dataset", "dev"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        self.monkeypatch.setenv(PORT_ENV, "0")
        self.monkeypatch.setenv("OMP_NUM_THREADS", "1")  # tiny tensors: a second thread is only waited for

    @property
    def paths(self) -> Paths:
        return Paths(self.root)

    def run(self, stage: Stage, stage_input: dict[str, Any]) -> tuple[int, Termination]:
        """Run a stage; its exit code and its last words."""
        self.monkeypatch.setenv(STAGE_INPUT_ENV, json.dumps({"owner": "FineTuneJob test/job", **stage_input}))
        module = MODULES[stage]
        holds, tidy = getattr(module, "holds", always_holds), getattr(module, "tidy", leave_all)
        code = run_stage(stage, module.run, self.paths, holds, tidy)
        return code, Termination.model_validate_json(self.paths.termination_log.read_bytes())

    def process(self, stage: Stage, stage_input: dict[str, Any], *flags: str) -> "subprocess.CompletedProcess[str]":
        """Run a stage as the process that a pod runs, with these flags of Python's."""
        text = json.dumps({"owner": "FineTuneJob test/job", **stage_input})
        environment = {**os.environ, STAGE_INPUT_ENV: text, "TUNELOOP_ROOT": str(self.root)}
        command = [sys.executable, *flags, "-m", "tuneloop_trainer", stage]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    def succeed(self, stage: Stage, stage_input: dict[str, Any]) -> dict[str, Any]:
        """Run a stage that must succeed; its result."""
        code, termination = self.run(stage, stage_input)
        assert code == 0, termination.message
        assert termination.result is not None
        return termination.result

    def write_dataset(self, *rows: dict[str, Any], name: str = "train.jsonl") -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.paths.dataset / name).write_text(text)

    def check(self, training: dict[str, Any] | None = None) -> dict[str, Any]:
        return self.succeed(Stage.CHECK, self.check_input(training))

    @staticmethod
    def check_input(training: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"dataset": {"uri": "pvc://claim/data"}, "method": {}, "training": training or TRAINING}

    @staticmethod
    def train_input(**training: Any) -> dict[str, Any]:
        return {"method": {}, "training": {**TRAINING, **training}, "checkpoint": {}, "evaluation": EVALUATION}
