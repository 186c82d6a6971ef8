"""The training loop: packs forward and backward, one optimizer step after each step's packs, checkpoints in between.

Written out rather than taken from a trainer class: what happens to every token can be read here (docs/adr/0030). Knows
nothing of stages, files of results or evaluation.
"""

import logging
import math
import threading
import time
from dataclasses import dataclass

import torch
from tuneloop_core.api.finetunejob import Training
from tuneloop_core.api.formats import parse_decimal, parse_duration
from tuneloop_core.stages import Reason

from tuneloop_trainer.batches import Schedule, pack
from tuneloop_trainer.checkpoints import Checkpoints, TrainingState
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.machine import memory_limit
from tuneloop_trainer.model import TunedModel
from tuneloop_trainer.optimizer import AdapterOptimizer, learning_rate
from tuneloop_trainer.progress import Board, thinned
from tuneloop_trainer.tokens import Document, TokenStore

log = logging.getLogger("tuneloop")

# Tokens a pack. On CPU, small enough that activations stay in the caches; on CUDA, enough to fill the device.
PACK_TOKENS = {"cpu": 1024, "cuda": 8192}


@dataclass
class Loop:
    """One training run; ``run`` returns when it is over, or raises ``Terminated`` after saving."""

    model: TunedModel
    store: TokenStore
    schedule: Schedule
    training: Training
    checkpoints: Checkpoints
    checkpoint_seconds: float
    board: Board
    stop: threading.Event
    state: TrainingState

    def __post_init__(self) -> None:
        self.optimizer = AdapterOptimizer(self.model.parameters)
        self._lengths = self.store.lengths
        self._peak = parse_decimal(self.training.learning_rate)
        self._limit = parse_duration(self.training.max_duration)
        self._tokens_at_start, self._seconds_at_start = self.state.tokens, self.state.seconds

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint; returns whether there was one."""
        found = self.checkpoints.load(self.state.input_digest)
        if found is None:
            return False
        saved, tensors = found
        self.optimizer.load(tensors, saved.optimizer_steps)
        if saved.microbatch and saved.capacity != self.state.capacity:
            self.optimizer.clear()
            saved = saved.model_copy(update={"microbatch": 0, "step_loss": 0.0, "capacity": self.state.capacity})
        self.state = saved.model_copy(update={"resumes": saved.resumes + 1})
        self._tokens_at_start, self._seconds_at_start = saved.tokens, saved.seconds
        self.board.skip_to(saved.step / self.schedule.total_steps)
        log.info("going on from step %d of %d", saved.step, self.schedule.total_steps)
        return True

    def run(self) -> TrainingState:
        """Train to the end; the last state is always a checkpoint."""
        self._last_saved = time.monotonic()
        began_at = self.state.position
        while self.state.step < self.schedule.total_steps:
            if self.state.seconds >= self._limit:
                log.warning("maxDuration %s is over at step %d", self.training.max_duration, self.state.step)
                break
            self._step_or_smaller()
        if self.state.position != began_at or self.checkpoints.last_step is None:
            self.save()
        return self.state

    def save(self) -> None:
        """Write a checkpoint of the present position."""
        self.checkpoints.save(self.state, self.optimizer.state())
        self._last_saved = time.monotonic()
        self.board.update(checkpoint_step=self.checkpoints.last_step, checkpoint_time=self.checkpoints.last_time)

    def _step_or_smaller(self) -> None:
        """One step; where the accelerator's memory does not suffice, the same step again in smaller packs."""
        try:
            self._step()
        except (torch.OutOfMemoryError, MemoryError) as error:
            self.optimizer.clear()
            capacity = self.state.capacity // 2
            if capacity < 256 or self.model.machine.device.type == "cpu":
                raise out_of_memory(self.training, error) from error
            log.warning("out of memory; going on with packs of %d tokens", capacity)
            torch.cuda.empty_cache()
            self.state = self.state.model_copy(update={"microbatch": 0, "step_loss": 0.0, "capacity": capacity})

    def _step(self) -> None:
        """All packs of a step from the present position on, then the update."""
        documents = self.schedule.documents(self.state.step)
        packing = self.training.packing and self.model.isolates
        packs = pack(documents, self._lengths, self.state.capacity, packing)
        trained = sum(int(self.store.document(number).trained[1:].sum()) for number in documents.tolist())
        for number in range(self.state.microbatch, len(packs)):
            self._obey_stop()
            self._pack([self.store.document(document) for document in packs[number]], trained, number, len(packs))
            if time.monotonic() - self._last_saved >= self.checkpoint_seconds:
                self.save()
        self._update(trained)

    def _pack(self, documents: list[Document], trained_in_step: int, number: int, packs: int) -> None:
        """Forward and backward of one pack; its gradient is that of the step's mean over trained tokens."""
        started = time.monotonic()
        loss, _ = self.model.loss(documents)
        value = loss.item()
        if not math.isfinite(value):
            raise self._not_finite(f"the loss is {value}")
        (loss / max(1, trained_in_step)).backward()  # type: ignore[no-untyped-call]
        self.state = self.state.model_copy(
            update={
                "microbatch": number + 1,
                "step_loss": self.state.step_loss + value,
                "tokens": self.state.tokens + sum(len(document.ids) for document in documents),
                "seconds": self.state.seconds + time.monotonic() - started,
            }
        )
        self._tell(self.state.step + (number + 1) / packs)

    def _update(self, trained: int) -> None:
        started = time.monotonic()
        step = self.state.step
        rate = learning_rate(step, self.schedule.total_steps, self._peak)
        norm = self.optimizer.step(rate)
        if not math.isfinite(norm):
            raise self._not_finite(f"the gradient's norm is {norm}")
        loss = self.state.step_loss / max(1, trained)
        self.state = self.state.model_copy(
            update={
                "step": step + 1,
                "microbatch": 0,
                "step_loss": 0.0,
                "optimizer_steps": self.optimizer.steps,
                "last_loss": loss,
                "curve": [*self.state.curve, (step + 1, round(loss, 6))],
                "seconds": self.state.seconds + time.monotonic() - started,
            }
        )
        self.board.record(step=step + 1, loss=loss, learningRate=rate, gradientNorm=norm, tokens=self.state.tokens)
        self.board.update(loss=round(loss, 6), learning_rate=rate, curve=thinned(self.state.curve))
        self._tell(step + 1)
        log.info("step %d/%d loss %.4f lr %.2e", step + 1, self.schedule.total_steps, loss, rate)

    def _tell(self, step: float) -> None:
        seconds = self.state.seconds - self._seconds_at_start
        rate = (self.state.tokens - self._tokens_at_start) / seconds if seconds > 0 else None
        self.board.update(
            share=step / self.schedule.total_steps,
            step=round(step, 3),
            tokens=self.state.tokens,
            tokens_per_second=None if rate is None else round(rate, 1),
        )

    def _obey_stop(self) -> None:
        if self.stop.is_set():
            self.save()
            raise StageError(Reason.TERMINATED, f"stopped at step {self.state.step}; the checkpoint is saved.")

    def _not_finite(self, what: str) -> StageError:
        return StageError(
            Reason.LOSS_NAN,
            f"{what} at step {self.state.step + 1}. Lower training.learningRate (now {self.training.learning_rate}), "
            "and look for broken texts in the dataset.",
        )


def out_of_memory(training: Training, error: BaseException) -> StageError:
    """The error that says what to lower, with the limit that was met."""
    limit = memory_limit()
    has = f" The pod's limit is {limit / 2**30:.1f} GiB." if limit else ""
    return StageError(
        Reason.OUT_OF_MEMORY,
        f"memory ran out in training: {str(error).splitlines()[0][:200]}.{has} Lower training.maxSequenceLength (now "
        f"{training.max_sequence_length}) or method.lora.rank, or give the pod more.",
    )
