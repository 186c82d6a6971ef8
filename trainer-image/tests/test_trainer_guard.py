"""What stops training that goes wrong: numbers that are none, divergence, a hang."""

import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pods
import pytest
import torch
from tuneloop_core.stages import Reason, Stage, TrainInput

from tuneloop_trainer import checkpoints, early, spikes, train
from tuneloop_trainer.batches import halved
from tuneloop_trainer.costs import Costs
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.loop import Loop
from tuneloop_trainer.model import TunedModel
from tuneloop_trainer.shortage import leave_packs, out_of_memory, with_packs_left
from tuneloop_trainer.watchdog import Watchdog

NAN, INFINITE = float("nan"), float("inf")
CALM = [2.0, 2.1, 1.9, 2.05] * 8  # median 2.025, deviation far below a nat


@pytest.mark.parametrize(
    ("losses", "spike"),
    [
        ([], False),
        ([9.0], False),
        ([*CALM[:15], 9.0], False),  # too few say what is usual
        ([*CALM[:16], 9.0], True),
        ([*CALM, 3.0], False),  # below a nat above the usual
        ([*CALM, 3.1], True),
        ([*([0.1] * 64), 1.05], False),
        ([*([1.0, 3.0] * 32), 9.0], False),  # noisy: ten deviations are 14.8 nats
        ([*([1.0, 3.0] * 32), 17.0], True),
        ([*([9.0] * 64), *CALM, *CALM, 4.0], True),  # only the window counts
    ],
)
def test_a_spike_is_far_above_what_is_usual(losses: list[float], spike: bool) -> None:
    assert spikes.is_spike(losses) == spike


@pytest.mark.parametrize(
    ("losses", "diverged"),
    [
        ([*CALM, *([9.0] * 7)], False),
        ([*CALM, *([9.0] * 8)], True),
        ([*CALM, *([9.0] * 4), 2.0, *([9.0] * 4)], False),  # one calm step between
        ([9.0] * 8, False),
        ([*reversed(range(1, 40))], False),
    ],
)
def test_a_run_of_spikes_is_divergence(losses: list[float], diverged: bool) -> None:
    assert spikes.diverged(losses) == diverged


@pytest.mark.parametrize(
    ("looks", "patience", "best", "over"),
    [
        ([], 1, None, False),
        ([(2, 1.0)], 1, (2, 1.0), False),
        ([(2, 1.0), (4, 1.0)], 1, (2, 1.0), True),  # equal is not better
        ([(2, 1.0), (4, 1.5), (6, 0.9), (8, 1.1)], 2, (6, 0.9), False),
        ([(2, 1.0), (4, 1.5), (6, 0.9), (8, 1.1), (10, NAN)], 2, (6, 0.9), True),
        ([(2, NAN), (4, 1.5)], 1, (4, 1.5), False),
    ],
)
def test_early_stopping(looks: list[early.Look], patience: int, best: early.Look | None, over: bool) -> None:
    assert early.best(looks) == best
    assert early.exhausted(looks, patience) == over


WIDER = "which splits the model further (routed experts no further than by their number), or"
NODES = f"or raise resources.nodes (now 2), {WIDER} raise pod.resources.limits.memory."
BOTH = (
    f"or raise resources.accelerators (now 8) or resources.nodes (now 2), {WIDER} use an accelerator with more memory."
)


@pytest.mark.parametrize(
    ("method", "accelerators", "shard", "words"),
    [
        ({}, 0, False, "or take QLoRA for method.adapter, or raise pod.resources.limits.memory."),
        ({}, 1, False, "or take QLoRA for method.adapter, or use an accelerator with more memory."),
        ({"task": "SequenceClassification"}, 1, False, "or lower method.lora.rank, or use"),
        ({"task": "SequenceClassification", "adapter": "DoRA"}, 1, False, "or take LoRA for method.adapter, or use"),
        ({"adapter": "QLoRA"}, 1, False, "or lower method.lora.rank, or use"),
        ({"adapter": "DoRA"}, 1, False, "or take LoRA or QLoRA for method.adapter"),
        ({"adapter": "None"}, 1, False, "or train an adapter instead of all weights (method.adapter LoRA)"),
        ({}, 8, True, f"or lower method.lora.rank, {BOTH}"),  # QLoRA is not split
        ({}, 0, True, f"or lower method.lora.rank, {NODES}"),
        ({"adapter": "DoRA"}, 8, True, f"or take LoRA for method.adapter, {BOTH}"),
        ({"adapter": "None"}, 8, True, f"or train an adapter instead of all weights (method.adapter LoRA), {BOTH}"),
    ],
)
def test_what_to_lower_when_memory_ran_out(method: dict[str, Any], accelerators: int, shard: bool, words: str) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")
    given = planned(method=method, accelerators=accelerators, shard=shard, nodes=2)
    told = out_of_memory(given, error)
    assert told.reason is Reason.OUT_OF_MEMORY
    assert told.message.startswith("memory ran out in training: CUDA out of memory. Tried to allocate 2 GiB.")
    assert "Lower training.maxSequenceLength (now 2048)" in told.message
    assert words in told.message
    assert "MemoryError" in out_of_memory(given, MemoryError()).message


def planned(**more: Any) -> TrainInput:
    parts: dict[str, Any] = {"method": {}, "training": {}, "checkpoint": {}, "evaluation": {}, **more}
    return TrainInput(owner="FineTuneJob test/job", **parts)


@pytest.mark.parametrize(
    ("left", "shard", "taken"),
    [((), True, 2048), ((1024,), True, 1024), ((1024, 512), True, 512), ((0,), True, 2048), ((4096,), True, 2048)],
)
def test_packs_that_a_try_leaves_are_taken_by_the_next(
    tmp_path: Path, left: tuple[int, ...], shard: bool, taken: int
) -> None:
    for tokens in left:
        words = leave_packs(tokens, tmp_path), leave_packs(tokens, tmp_path)  # two processes, at once
        assert words == ((f" Another try takes packs of {tokens} tokens.",) * 2 if tokens else ("", ""))
    assert with_packs_left(planned(shard=shard, pack_tokens=2048), tmp_path).pack_tokens == taken
    assert with_packs_left(planned(pack_tokens=2048), tmp_path).pack_tokens == 2048, "of a model in one piece"


@pytest.mark.parametrize(
    ("capacity", "longest", "packing", "half"),
    [
        (4096, 2048, True, 2048),
        (4096, 3000, True, 2048),  # the largest is then a row of 3000
        (4096, 4096, True, 0),
        (4096, 9000, True, 0),
        (4096, 100, False, 0),  # each row is a pack
        (512, 100, True, 256),
        (511, 100, True, 0),
    ],
)
def test_packs_are_halved_where_that_makes_any_smaller(capacity: int, longest: int, packing: bool, half: int) -> None:
    assert halved(capacity, np.array([20, longest, 30]), packing) == half


@pytest.mark.parametrize(
    ("packing", "where", "half"), [(True, "training", 256), (False, "training", 0), (True, "loading", 0)]
)
def test_a_split_model_that_ran_out_of_memory_goes_on_in_smaller_packs(
    pod: pods.Pod, monkeypatch: pytest.MonkeyPatch, packing: bool, where: str, half: int
) -> None:
    """Also from a checkpoint of the try that took the larger ones."""
    pod.check()
    folder = pod.paths.work / "train"
    checkpoint = {"checkpoint": {"interval": "1ms", "keep": 2}}
    stage_input = pod.train_input(packing=packing) | checkpoint | {"shard": True, "packTokens": 512}
    place = (train, "load_model") if where == "loading" else (Loop, "_update")
    original = getattr(*place)

    def full(*args: Any, **more: Any) -> Any:
        if where == "loading" or list(folder.glob("checkpoints/step-*")):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(*args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(*place, full)
        termination = pod.run(Stage.TRAIN, stage_input)[1]
    assert termination.reason == "OutOfMemory"
    assert ("Another try takes packs of 256 tokens." in termination.message) is bool(half)
    assert (folder / "pack-tokens").exists() is bool(half)
    steps = pod.succeed(Stage.TRAIN, stage_input)["steps"]
    state = json.loads((folder / f"checkpoints/step-{steps}/state.json").read_text())
    assert state["capacity"] == (half or 512)


def test_the_watchdog_counts_from_the_last_sign_of_life() -> None:
    now, silences = [100.0], list[float]()
    watchdog = Watchdog(60, silences.append, clock=lambda: now[0])
    now[0] = 159.0
    assert not watchdog.look()
    watchdog.beat()
    now[0] = 218.0
    assert not watchdog.look()
    now[0] = 219.0
    assert watchdog.look()
    assert silences == [60.0]


def test_a_watchdog_that_was_left_does_nothing() -> None:
    silences = list[float]()
    with Watchdog(3600, silences.append) as watchdog:
        watchdog.beat()
    assert not watchdog._thread.is_alive()
    assert not silences


def test_a_watchdog_that_is_paused_sees_no_silence_and_counts_anew_afterwards() -> None:
    now, silences = [100.0], list[float]()
    watchdog = Watchdog(60, silences.append, clock=lambda: now[0])
    with watchdog.paused():
        now[0] = 9000.0
        assert not watchdog.look()
    now[0] = 9059.0
    assert not watchdog.look()
    now[0] = 9060.0
    assert watchdog.look()
    assert silences == [60.0]


def test_a_checkpoint_may_take_longer_than_a_step(pod: pods.Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    pod.check()
    now, looks, said, written = [0.0], threading.Semaphore(0), list[StageError](), list[Path]()
    look, write = Watchdog.look, checkpoints.write_tensors

    def looked(self: Watchdog) -> bool:
        found = look(self)
        looks.release()
        return found

    def slow(path: Path, tensors: Any) -> None:
        now[0] += 100.0
        while looks.acquire(blocking=False):
            pass
        assert looks.acquire(timeout=60)
        looks.acquire(timeout=60)  # one look at least began after the clock had moved
        write(path, tensors)
        written.append(path)

    monkeypatch.setattr(Watchdog, "look", looked)
    monkeypatch.setattr(train, "Watchdog", partial(Watchdog, clock=lambda: now[0]))
    monkeypatch.setattr(train, "end_at_once", lambda _stage, error, _paths: said.append(error))
    monkeypatch.setattr(checkpoints, "write_tensors", slow)
    pod.succeed(Stage.TRAIN, pod.train_input(stepTimeout="4s"))
    assert written
    assert not said, said[0].message


def test_the_watchdog_looks_on_evaluations_too(pod: pods.Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    pod.check()
    said, released, beats = list[StageError](), threading.Event(), list[float]()
    beat = Watchdog.beat

    def counted(self: Watchdog) -> None:
        beats.append(0.0)
        beat(self)

    def end(_stage: Stage, error: StageError, _paths: Any) -> None:
        said.append(error)
        released.set()

    def stuck(*_: Any) -> None:
        assert released.wait(300)
        raise StageError(Reason.STEP_TIMEOUT, "as the process would have ended")

    monkeypatch.setattr(Watchdog, "beat", counted)
    monkeypatch.setattr(train, "end_at_once", end)
    monkeypatch.setattr(train, "QUIET_SECONDS", 1.0)
    monkeypatch.setattr(train, "score", stuck)
    assert pod.run(Stage.TRAIN, pod.train_input(stepTimeout="1s"))[0] != 0
    assert said[0].reason is Reason.STEP_TIMEOUT
    assert "in BaseEvaluation, at step 0" in said[0].message
    assert len(beats) > pods.EVALUATION["maxNewTokens"], "each token that is generated is a sign of life"


def test_what_comes_before_and_after_training_counts_as_work() -> None:
    costs = Costs.of("KTO", used=100, held_out=50, generated=30, asked=20, seen=400)
    assert costs.phases == {"BaseEvaluation": 2 * 150 + 100, "Training": 1200, "TunedEvaluation": 100}
    assert costs.references == (0.5, 0.75)
    assert costs.held_share == 0.8
    plain = Costs.of("SFT", used=100, held_out=50, generated=30, asked=0, seen=400)
    assert (plain.references, plain.held_share) == ((0.0, 0.0), 1.0)
    assert Costs().references == (0.0, 0.0)


def test_a_rate_too_high_is_a_user_error(pod: pods.Pod) -> None:
    pod.check()
    code, termination = pod.run(Stage.TRAIN, pod.train_input(learningRate="1e30"))
    assert (code, termination.reason) == (42, "LossNaN")
    assert "Lower training.learningRate (now 1e30)" in termination.message


class _Broken(torch.autograd.Function):
    """The loss as it is, with gradients that are none."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return upstream * ctx.factor, None


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("value", [NAN, INFINITE])
def test_numbers_that_are_none_stop_training_before_the_update(
    pod: pods.Pod, monkeypatch: pytest.MonkeyPatch, what: str, value: float
) -> None:
    pod.check()
    original = TunedModel.loss

    def broken(self: TunedModel, documents: Any) -> Any:
        loss, *rest = original(self, documents)
        third_step = loss.requires_grad and recorded() == 2
        if third_step:
            loss = loss * value if what == "loss" else _Broken.apply(loss, value)  # type: ignore[no-untyped-call]
        return loss, *rest

    def recorded() -> int:
        path = pod.paths.work / "train/metrics.jsonl"
        return len(path.read_text().splitlines()) if path.is_file() else 0

    monkeypatch.setattr(TunedModel, "loss", broken)
    code, termination = pod.run(Stage.TRAIN, pod.train_input())
    assert (code, termination.reason) == (42, "LossNaN")
    assert ("the loss is" if what == "loss" else "the gradient's norm is") in termination.message
    assert "at step 3" in termination.message
    assert recorded() == 2


def test_divergence_stops_training_and_keeps_the_checkpoint_from_before(
    pod: pods.Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod.check()
    original = Loop._pack

    def worse(self: Loop, *args: Any) -> None:
        original(self, *args)
        if self.state.step >= 20:
            self.state = self.state.model_copy(update={"step_loss": self.state.step_loss * 1000})

    monkeypatch.setattr(Loop, "_pack", worse)
    stage_input = pod.train_input(epochs=40) | {"checkpoint": {"interval": "1ms", "keep": 1}}
    code, termination = pod.run(Stage.TRAIN, stage_input)
    assert (code, termination.reason) == (42, "LossSpike")
    assert "up to step 28" in termination.message
    (checkpoint,) = (pod.paths.work / "train/checkpoints").glob("step-*")
    assert checkpoint.name.startswith("step-20"), "no later one pushed it out"
