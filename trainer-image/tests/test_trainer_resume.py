"""Checkpoints, and what training tells while it runs and when it fails."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pods
import pytest
import torch
from tuneloop_core.api.finetunejob import Method, Training
from tuneloop_core.constants import STAGE_INPUT_ENV
from tuneloop_core.stages import Progress, Stage

from tuneloop_trainer.checkpoints import Checkpoints, TrainingState, training_digest
from tuneloop_trainer.progress import PORT_ENV, Board, ProgressServer, thinned


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
    assert sorted(path.name for path in tmp_path.glob("*step-*")) == ["step-10", "step-9.2"]


def flip(folder: Path) -> None:
    path = folder / "state.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x01
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip,
    "a cut file": lambda folder: (folder / "state.safetensors").write_bytes(b"\0" * 8),
    "a missing file": lambda folder: (folder / "state.safetensors").unlink(),
    "a missing digest": lambda folder: (folder / "DIGEST").unlink(),
    "a digest that is no text": lambda folder: (folder / "DIGEST").write_bytes(b"\xff\xfe\x00"),
    "a state that is no JSON": lambda folder: (folder / "state.json").write_text("{"),
    "an empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_found_and_the_one_before_is_taken(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(TrainingState(input_digest="d", step=step), {"weight.a": torch.full((4,), float(step))})
    damage(tmp_path / "step-2")
    (tmp_path / ".aside-torn").mkdir()
    again = Checkpoints(tmp_path, keep=2)
    again.open()
    found = again.load("d")
    assert found is not None
    assert (found[0].step, found[1]["weight.a"].tolist()) == (1, [1.0] * 4)
    assert (again.loaded, again.damaged) == ("step-1", ["step-2"])
    assert sorted(path.name for path in tmp_path.glob("*step-*")) == ["step-1"]
    assert not (tmp_path / ".aside-torn").exists()


def test_resumes_are_counted_whatever_becomes_of_checkpoints(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert [checkpoints.count_resume(TrainingState(input_digest="d", step=step)) for step in (3, 1)] == [1, 2]


def test_what_does_not_change_the_course_does_not_change_the_digest() -> None:
    method, training = Method(), Training(epochs=2)
    digest = training_digest(method, training)
    assert training_digest(method, Training(epochs=2, step_timeout="1h", max_duration="9h", seed=7)) == digest
    assert training_digest(method, Training(epochs=2, seed=8)) != digest


def test_metrics_are_rewound_to_the_checkpoint(tmp_path: Path) -> None:
    board = Board(metrics_file=tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        board.record(step=step, loss=float(step))
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"time": 1, "st')
    board.rewind(2)
    board.record(step=3, loss=3.5)
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 3.5)]


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
