"""Interrupted training ends as if it had never been: step by step, and byte by byte, wherever it was interrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pods
import pytest
from tuneloop_core.constants import STAGE_INPUT_ENV
from tuneloop_core.stages import Stage

from tuneloop_trainer import train
from tuneloop_trainer.checkpoints import Checkpoints, TrainingState
from tuneloop_trainer.loop import Loop
from tuneloop_trainer.progress import PORT_ENV

SETTINGS: dict[str, Any] = {"epochs": 3}
DRIVER = Path(__file__).parent / "support/train_and_die.py"


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "PACK_TOKENS", {"cpu": 128})


class Runs:
    """Runs of one job in one pod's folders, beside the run that nothing interrupted."""

    def __init__(self, pod: pods.Pod, **settings: Any) -> None:
        self.pod, self.input = pod, pod.train_input(**SETTINGS | settings)
        self.folder = pod.paths.work / "train"
        pod.check()
        self.whole = pod.succeed(Stage.TRAIN, self.input)
        self.losses, self.adapter = self.recorded(), self.weights()

    def recorded(self) -> list[tuple[int, float]]:
        """Step and loss of each line of the metrics file."""
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [(line["step"], line["loss"]) for line in lines]

    def weights(self) -> bytes:
        return (self.folder / "adapter/adapter_model.safetensors").read_bytes()

    def forget(self) -> None:
        """As if the job had never run, but for the base model's scores."""
        for path in self.folder.iterdir():
            if path.name != "base.json":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def interrupted(self) -> None:
        """A run that must end by SIGTERM with its checkpoint saved."""
        code, termination = self.pod.run(Stage.TRAIN, self.input)
        assert (code, termination.reason) == (143, "Terminated")

    def killed(self, what: str, count: int) -> "subprocess.CompletedProcess[str]":
        """A run in a process of its own that dies, or stands still, at the given place."""
        environment = {
            **os.environ,
            STAGE_INPUT_ENV: json.dumps({"owner": "FineTuneJob test/job", **self.input}),
            "TUNELOOP_ROOT": str(self.pod.root),
            PORT_ENV: "0",
        }
        words = [sys.executable, str(DRIVER), what, str(count)]
        return subprocess.run(words, env=environment, check=False, capture_output=True, text=True, timeout=300)

    def finish(self, resumes: int) -> dict[str, Any]:
        """The last run: it must end as if nothing had been."""
        result = self.pod.succeed(Stage.TRAIN, self.input)
        assert self.recorded() == self.losses
        assert self.weights() == self.adapter
        assert result["resumes"] == resumes
        for key in ("base", "tuned", "steps", "tokens", "curve", "finalLoss"):
            assert result[key] == self.whole[key]
        return result

    @property
    def checkpoints(self) -> list[Path]:
        """Newest first."""
        return Checkpoints(self.folder / "checkpoints", keep=2)._paths()


def terminate_after(patch: pytest.MonkeyPatch, method: str, number: int) -> None:
    """SIGTERM comes when this method of the loop was called this often."""
    original: Callable[..., None] = getattr(Loop, method)
    seen = iter(range(1, 10**6))

    def counted(self: Loop, *args: Any) -> None:
        original(self, *args)
        if next(seen) == number:
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(Loop, method, counted)


def test_sigterm_within_a_step_between_steps_and_twice(pod: pods.Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(pod)
    for places in ([("_pack", 9)], [("_update", 3)], [("_update", 12)], [("_pack", 1), ("_pack", 30), ("_update", 2)]):
        runs.forget()
        for method, number in places:
            with monkeypatch.context() as patch:
                terminate_after(patch, method, number)
                runs.interrupted()
            within_step = "." in runs.checkpoints[0].name
            assert within_step == (method == "_pack")
        runs.finish(resumes=len(places))


def test_a_stop_saves_nothing_that_is_saved(pod: pods.Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes within a save, and one that comes before anything was done after a checkpoint was read."""
    runs, original = Runs(pod), Checkpoints.save
    runs.forget()
    written: list[tuple[int, int]] = []

    def told(self: Checkpoints, state: TrainingState, *args: Any) -> Path:
        written.append(state.position)
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, state, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", told)
        patch.setattr(Loop, "_is_due", lambda self: self.state.position == (1, 1))
        runs.interrupted()
        terminate_after(patch, "resume", 1)
        runs.interrupted()
    assert written == [(1, 1)]
    runs.finish(resumes=2)


def test_kill_9_within_and_while_a_checkpoint_is_written(pod: pods.Pod) -> None:
    runs = Runs(pod)
    runs.forget()
    first = runs.killed("pack", 27)
    assert first.returncode == -signal.SIGKILL
    reached = runs.recorded()[-1][0]
    assert reached > max(step for step, _ in [position(path) for path in runs.checkpoints])
    second = runs.killed("write", 2)
    assert second.returncode == -signal.SIGKILL
    folder = runs.folder / "checkpoints"
    assert list(folder.glob(".aside-*")), "the torn write left something behind"
    assert len(runs.checkpoints) <= 2, "keep is honoured"
    result = runs.finish(resumes=2)
    assert not list(folder.glob(".aside-*")), "what was half-written is gone"
    assert result["notices"] == []


def position(path: Path) -> tuple[int, int]:
    step, _, pack = path.name.removeprefix("step-").partition(".")
    return int(step), int(pack or 0)


def flip(folder: Path) -> None:
    with (folder / "state.safetensors").open("r+b") as stream:
        stream.seek(-8, os.SEEK_END)
        byte = stream.read(1)
        stream.seek(-8, os.SEEK_END)
        stream.write(bytes([byte[0] ^ 0x01]))


def test_a_damaged_checkpoint_is_passed_over(pod: pods.Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(pod)
    runs.forget()
    for number in (5, 6):
        with monkeypatch.context() as patch:
            terminate_after(patch, "_pack", number)
            runs.interrupted()
    newest, older = runs.checkpoints
    flip(newest)
    (notice,) = runs.finish(resumes=2)["notices"]
    assert notice["reason"] == "CheckpointCorrupt"
    assert newest.name in notice["message"]
    assert f"went on from {older.name}" in notice["message"]


def test_without_a_whole_checkpoint_training_begins_anew_and_says_so(
    pod: pods.Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(pod)
    runs.forget()
    with monkeypatch.context() as patch:
        terminate_after(patch, "_pack", 20)
        runs.interrupted()
    flip(runs.checkpoints[0])
    (notice,) = runs.finish(resumes=0)["notices"]
    assert "none is whole: training began anew" in notice["message"]


def test_a_pod_of_a_lost_node_no_longer_writes(pod: pods.Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(pod)
    runs.forget()
    original, seen = Loop._update, iter(range(1, 10**6))

    def taken_over(self: Loop, *args: Any) -> None:
        if next(seen) == 4:
            Checkpoints(runs.folder / "checkpoints", keep=2).open()  # the next pod
        original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_update", taken_over)
        code, termination = pod.run(Stage.TRAIN, runs.input)
    assert (code, termination.reason) == (143, "Terminated")
    assert "another pod trains this job now" in termination.message
    assert len(runs.recorded()) == 3
    assert not runs.checkpoints
    runs.finish(resumes=0)


def test_early_stopping_is_the_same_when_interrupted(pod: pods.Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(pod, epochs=12, learningRate="2e-1", earlyStopping={"interval": 2, "patience": 1})
    steps, best = runs.whole["steps"], runs.whole["bestStep"]
    assert steps == best + 2, "one look, two steps later, brought nothing better"
    assert steps < 48
    (notice,) = runs.whole["notices"]
    assert notice["reason"] == "EarlyStopped"
    assert f"lowest at step {best}" in notice["message"]
    assert f"stopped at step {steps} of" in notice["message"]
    for places in ([("_update", 2)], [("_update", best + 1), ("_pack", 2)]):
        runs.forget()
        for method, number in places:
            with monkeypatch.context() as patch:
                terminate_after(patch, method, number)
                runs.interrupted()
        result = runs.finish(resumes=len(places))
        assert result["bestStep"] == best
        assert result["notices"] == runs.whole["notices"]


def test_the_watchdog_ends_a_hang_and_the_next_pod_goes_on(pod: pods.Pod) -> None:
    runs = Runs(pod, stepTimeout="2s")
    runs.forget()
    hung = runs.killed("hang", 27)
    assert hung.returncode == 76
    assert "stand_still" in hung.stderr, "the log shows where the thread stood"
    said = json.loads(pod.paths.termination_log.read_text())
    assert said["reason"] == "StepTimeout"
    assert "training.stepTimeout 2s" in said["message"]
    runs.finish(resumes=1)


def test_the_deadline_saves_and_counts_as_a_try(pod: pods.Pod) -> None:
    runs = Runs(pod)
    runs.forget()
    code, termination = pod.run(Stage.TRAIN, runs.input | {"deadlineSeconds": 0.001})
    assert (code, termination.reason) == (75, "DeadlineExceeded")
    assert "Raise training.maxDuration, or checkpoint.interval where" in termination.message
    runs.finish(resumes=0)
