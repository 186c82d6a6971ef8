"""Interrupted training ends as if it had never been: step by step, and byte by byte."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pods
import pytest
from tuneloop_core.constants import STAGE_INPUT_ENV
from tuneloop_core.stages import Progress, Stage

from tuneloop_trainer.checkpoints import Checkpoints, TrainingState
from tuneloop_trainer.loop import Loop
from tuneloop_trainer.progress import PORT_ENV, Board, ProgressServer, thinned

SETTINGS: dict[str, Any] = {"epochs": 3}


@pytest.fixture
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneloop_trainer.train.PACK_TOKENS", {"cpu": 128})


def curve(pod: pods.Pod) -> list[float]:
    lines = (pod.paths.work / "train/metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def stop_after(monkeypatch: pytest.MonkeyPatch, packs: int) -> None:
    """SIGTERM comes while the pack with this number is computed."""
    original, seen = Loop._pack, iter(range(10**6))

    def counted(self: Loop, *args: Any) -> None:
        original(self, *args)
        if next(seen) + 1 == packs:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Loop, "_pack", counted)


@pytest.mark.usefixtures("small_packs")
def test_a_stopped_run_goes_on_exactly(pod: pods.Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    pod.check()
    whole = pod.succeed(Stage.TRAIN, pod.train_input(**SETTINGS))
    losses = curve(pod)
    adapter = (pod.paths.work / "train/adapter/adapter_model.safetensors").read_bytes()
    (pod.paths.work / "train").rename(pod.paths.work / "uninterrupted")

    with monkeypatch.context() as patch:
        stop_after(patch, packs=9)  # in the middle of a step
        code, termination = pod.run(Stage.TRAIN, pod.train_input(**SETTINGS))
    assert (code, termination.reason) == (143, "Terminated")
    (checkpoint,) = (pod.paths.work / "train/checkpoints").glob("step-*")
    assert "." in checkpoint.name  # within a step

    resumed = pod.succeed(Stage.TRAIN, pod.train_input(**SETTINGS))
    assert curve(pod) == losses
    assert (pod.paths.work / "train/adapter/adapter_model.safetensors").read_bytes() == adapter
    assert resumed["resumes"] == 1
    for key in ("base", "tuned", "steps", "tokens", "curve", "finalLoss"):
        assert resumed[key] == whole[key]


@pytest.mark.usefixtures("small_packs")
def test_a_damaged_checkpoint_is_passed_over(pod: pods.Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    pod.check()
    whole = pod.succeed(Stage.TRAIN, pod.train_input(**SETTINGS))
    (pod.paths.work / "train").rename(pod.paths.work / "uninterrupted")
    for packs in (5, 6):
        with monkeypatch.context() as patch:
            stop_after(patch, packs)
            assert pod.run(Stage.TRAIN, pod.train_input(**SETTINGS))[0] == 143
    newest, older = Checkpoints(pod.paths.work / "train/checkpoints", keep=2)._paths()
    with (newest / "state.safetensors").open("r+b") as stream:
        stream.seek(-8, os.SEEK_END)
        stream.write(b"\xff" * 8)
    assert older.is_dir()
    resumed = pod.succeed(Stage.TRAIN, pod.train_input(**SETTINGS))
    assert resumed["curve"] == whole["curve"]
    assert resumed["resumes"] == 1  # from the older one; what the damaged one counted is gone with it


def test_checkpoints_of_another_input_are_not_used(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(TrainingState(input_digest="sha256:a", step=3), {})
    assert checkpoints.load("sha256:b") is None
    found = checkpoints.load("sha256:a")
    assert found is not None
    assert found[0].step == 3


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, microbatch in ((1, 0), (9, 0), (9, 2), (10, 0)):
        checkpoints.save(TrainingState(input_digest="d", step=step, microbatch=microbatch), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-9.2"]


def test_a_rate_too_high_is_a_user_error(pod: pods.Pod) -> None:
    pod.check()
    code, termination = pod.run(Stage.TRAIN, pod.train_input(learningRate="1e30"))
    assert (code, termination.reason) == (42, "LossNaN")
    assert "Lower training.learningRate (now 1e30)" in termination.message


def test_weights_that_are_no_numbers_are_told(pod: pods.Pod) -> None:
    pod.check()
    path = pod.paths.model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4000] + b"\xff" * 4000)
    code, termination = pod.run(Stage.TRAIN, pod.train_input())
    assert (code, termination.reason) == (42, "ModelUnsupported")
    assert "give no numbers" in termination.message


def test_modules_that_the_model_lacks_are_told(pod: pods.Pod) -> None:
    pod.check()
    stage_input = {**pod.train_input(), "method": {"lora": {"targetModules": "c_attn"}}}
    code, termination = pod.run(Stage.TRAIN, stage_input)
    assert (code, termination.reason) == (42, "ModelUnsupported")
    assert "method.lora.targetModules c_attn does not fit this model" in termination.message


def test_max_duration_ends_training_and_still_evaluates(pod: pods.Pod) -> None:
    pod.check()
    result = pod.succeed(Stage.TRAIN, pod.train_input(maxDuration="1ms"))
    assert result["steps"] < 8
    assert result["tuned"]["evalLoss"] is not None


def test_progress_is_told_while_a_real_process_trains_and_obeys_sigterm(pod: pods.Pod) -> None:
    pod.check()
    stage_input = {"owner": "test", **pod.train_input(epochs=1000)}
    environment = {
        **os.environ,
        STAGE_INPUT_ENV: json.dumps(stage_input),
        "TUNELOOP_ROOT": str(pod.root),
        PORT_ENV: "18931",
    }
    process = subprocess.Popen([sys.executable, "-m", "tuneloop_trainer", "train"], env=environment)
    try:
        progress = wait_for_training("http://127.0.0.1:18931", process)
        assert progress.total_steps > 1000
        assert progress.tokens_per_second is not None
        metrics = get("http://127.0.0.1:18931/metrics").decode()
        assert "tuneloop_training_step " in metrics
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 143
    finally:
        process.kill()
    assert list((pod.paths.work / "train/checkpoints").glob("step-*"))
    assert json.loads(pod.paths.termination_log.read_text())["reason"] == "Terminated"


def wait_for_training(url: str, process: "subprocess.Popen[bytes]") -> Progress:
    pause = threading.Event()
    for _ in range(600):
        assert process.poll() is None, "the training process ended"
        try:
            progress = Progress.model_validate_json(get(f"{url}/progress"))
        except OSError:
            pause.wait(0.25)
            continue
        if progress.phase == "Training" and progress.step >= 2:
            return progress
        pause.wait(0.25)
    raise AssertionError("training did not reach step 2 in 150 s")


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as response:
        return bytes(response.read())


def test_percent_and_eta_follow_the_costs_of_the_phases() -> None:
    board = Board(costs={"BaseEvaluation": 10.0, "Training": 80.0, "TunedEvaluation": 10.0})
    assert (board.snapshot().percent, board.snapshot().eta_seconds) == (0, None)
    board.enter("Training")
    board.update(share=0.5)
    assert board.snapshot().percent == 50
    board.enter("TunedEvaluation")
    assert board.snapshot().percent == 90
    board.enter("Done")
    assert board.snapshot().percent == 100


def test_unknown_paths_are_404() -> None:
    server = ProgressServer(Board(), port=0)
    try:
        with pytest.raises(urllib.error.HTTPError, match="404") as caught:
            get(f"http://127.0.0.1:{server.port}/else")
        caught.value.close()
        assert get(f"http://127.0.0.1:{server.port}/healthz") == b"ok\n"
    finally:
        server.close()


def test_the_curve_keeps_its_ends() -> None:
    thin = thinned([(step, float(step)) for step in range(1, 1001)])
    assert (len(thin), thin[0], thin[-1]) == (64, (1, 1.0), (1000, 1000.0))
