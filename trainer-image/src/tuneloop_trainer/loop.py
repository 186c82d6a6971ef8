"""The training loop: packs forward and backward, one optimizer step after each step's packs, checkpoints in between.

Written out rather than taken from a trainer class: what happens to every token can be read here (docs/adr/0030). Knows
nothing of stages, files of results or evaluation.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from tuneloop_core.api.finetunejob import Training
from tuneloop_core.api.formats import parse_decimal, parse_duration
from tuneloop_core.constants import PACK_TOKENS
from tuneloop_core.stages import Notice, Reason

from tuneloop_trainer import early, spikes
from tuneloop_trainer.batches import Schedule, halved, spread
from tuneloop_trainer.checkpoints import Checkpoints, Found, TrainingState
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.model import TunedModel
from tuneloop_trainer.objectives import Objective
from tuneloop_trainer.optimizer import MasterAdam, learning_rate
from tuneloop_trainer.peers import ALONE, Peers
from tuneloop_trainer.progress import Board, thinned

log = logging.getLogger("tuneloop")

NOTICES = 4  # kept in the status
BEST = "best."  # prefix of the best weights' tensors in a checkpoint
EMPTY = torch.empty(0)  # a tensor that only the leader has

__all__ = ["PACK_TOKENS", "Loop"]

HeldOutLoss = Callable[[Callable[[float], None]], float]  # told the share that is done on the way


@dataclass
class Loop:
    """One training run; ``run`` returns when it is over, or raises ``Terminated`` after saving.

    With ``peers`` each rank computes its packs of a step, and all take the same step: their states are equal after
    each. Checkpoints are then of whole steps, so that they hold no rank's share of a sum.
    """

    model: TunedModel
    objective: Objective
    schedule: Schedule
    training: Training
    checkpoints: Checkpoints
    checkpoint_seconds: float
    board: Board
    stop: threading.Event
    state: TrainingState
    held_out_loss: HeldOutLoss | None = None  # for early stopping
    beat: Callable[[], None] = lambda: None  # a sign of life after each pack
    unwatched: Callable[[], AbstractContextManager[None]] = nullcontext  # around what the store takes its time for
    peers: Peers = ALONE

    def __post_init__(self) -> None:
        self.optimizer = MasterAdam(self.model.parameters, self.peers)
        self._lengths = self.objective.examples.lengths
        self._peak = parse_decimal(self.training.learning_rate)
        self._limit = parse_duration(self.training.max_duration)
        self._tokens_at_start, self._seconds_at_start = self.state.tokens, self.state.seconds
        self._best: dict[str, torch.Tensor] = {}
        self._begun, self._told_to_stop, self._saved = self.state, False, (-1, -1)  # the position of a checkpoint

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint; returns whether there was one."""
        self.checkpoints.open()
        found = self._found()
        if found is not None:
            self._go_on(*found)
        else:
            self.optimizer.align()
        if self.checkpoints.damaged:
            damaged = ", ".join(self.checkpoints.damaged[:3])
            instead = f"went on from {self.checkpoints.loaded}" if found else "none is whole: training began anew"
            self._notice(Reason.CHECKPOINT_CORRUPT, f"damaged checkpoints were passed over ({damaged}); {instead}")
        self.board.rewind(self.state.step)
        return found is not None

    def _found(self) -> tuple[TrainingState, Mapping[str, torch.Tensor]] | None:
        """The checkpoint to go on from, with the resume counted; only the leader has its tensors."""
        loaded = self.checkpoints.load(self.state.input_digest)
        self.peers.wait()  # for the leader, who read all of it for its digest
        state, tensors = loaded or (None, {})
        if state is not None:
            state = state.model_copy(update={"resumes": self.checkpoints.count_resume(state)})
        if not self.peers.many:
            return None if state is None else (state, tensors)
        known = self.checkpoints.found.model_copy(update={"state": state, "names": list(tensors)})
        told = Found.model_validate(self.peers.tell(known.model_dump(mode="json")))
        self.checkpoints.adopt(told)
        if told.state is None:
            return None
        return told.state, tensors if self.peers.leads else dict.fromkeys(told.names, EMPTY)

    def run(self) -> TrainingState:
        """Train to the end; the last state is a checkpoint, the weights are the best where they are known."""
        self._last_saved = time.monotonic()
        while not self._is_over():
            self._step_or_smaller()
        self._look(at_end=True)
        self.save()
        self._restore_best()
        return self.state

    @property
    def best_step(self) -> int | None:
        """The step of the lowest held-out loss, where it is looked at."""
        found = early.best(self.state.looks)
        return found[0] if found else None

    def save(self) -> None:
        """Write a checkpoint of the present position, unless it has one; of several ranks, all know that."""
        if self.state.position == self._saved:
            return
        best = {f"{BEST}weight.{name}": self.optimizer.saved(name, tensor) for name, tensor in self._best.items()}
        with self.unwatched():
            self.checkpoints.save(self.state, self.optimizer.state() | best)
            self.peers.wait()
        self._last_saved, self._saved = time.monotonic(), self.state.position
        self.board.update(checkpoint_step=self.checkpoints.last_step, checkpoint_time=self.checkpoints.last_time)

    def _go_on(self, saved: TrainingState, tensors: Mapping[str, torch.Tensor]) -> None:
        self._saved = saved.position
        self.optimizer.load(tensors, saved.optimizer_steps)
        keys = {name: f"{BEST}weight.{name}" for name in self.optimizer.weights()}
        kept = {name: key for name, key in keys.items() if key in tensors}
        told = ((name, self.optimizer.received(name, tensors, key)) for name, key in kept.items())
        self._best = {name: tensor.to("cpu", copy=True) for name, tensor in told}
        capacity = min(saved.capacity, self.state.capacity)  # memory ran out at more, in that try or after it
        if saved.microbatch and (self.peers.many or saved.capacity != capacity):
            self.optimizer.clear()
            saved = saved.model_copy(update={"microbatch": 0, "step_loss": 0.0})
        self.state = saved.model_copy(update={"capacity": capacity})
        self._tokens_at_start, self._seconds_at_start = saved.tokens, saved.seconds
        log.info("going on from step %d of %d", saved.step, self.schedule.total_steps)

    def _is_over(self) -> bool:
        """Whether all steps are done, time is over, or the held-out loss no longer falls."""
        self._look()
        (seconds,) = self.peers.most([self.state.seconds])  # the slowest one's time counts, for all
        self.state = self.state.model_copy(update={"seconds": seconds})
        if self.state.step >= self.schedule.total_steps:
            return True
        if self.state.seconds >= self._limit:
            log.warning("maxDuration %s is over at step %d", self.training.max_duration, self.state.step)
            return True
        stopping = self.training.early_stopping
        return stopping is not None and early.exhausted(self.state.looks, stopping.patience)

    def _look(self, *, at_end: bool = False) -> None:
        """Measure the held-out loss where early stopping wants it, once a step; the best weights so far are kept."""
        stopping, step = self.training.early_stopping, self.state.step
        if stopping is None or self.held_out_loss is None or step == 0 or self.state.microbatch:
            return
        if (step % stopping.interval and not at_end) or (self.state.looks and self.state.looks[-1][0] >= step):
            return
        loss = float(self.peers.tell(round(self.held_out_loss(lambda _share: self._alive()), 6)))
        self.state = self.state.model_copy(update={"looks": [*self.state.looks, (step, loss)]})
        if self.best_step == step:
            self._best = {name: tensor.to("cpu", copy=True) for name, tensor in self.optimizer.weights().items()}
        self.board.update(best_step=self.best_step)
        log.info("step %d: held-out loss %.4f, the lowest at step %s", step, loss, self.best_step)

    def _restore_best(self) -> None:
        """Put the best weights in place of the last, and say so."""
        found = early.best(self.state.looks)
        if found is None or found[0] == self.state.step:
            return
        self.optimizer.put(self._best)
        step, loss = found
        words = f"the held-out loss was lowest at step {step} ({loss:.4f}): its weights are kept"
        if self.state.step < self.schedule.total_steps and self.state.seconds < self._limit:
            words += f"; training stopped at step {self.state.step} of {self.schedule.total_steps}"
            self._notice(Reason.EARLY_STOPPED, words)
        else:
            self._notice(Reason.BEST_KEPT, words)

    def _notice(self, reason: Reason, message: str) -> None:
        """Say something that is worth an Event."""
        log.warning("%s: %s", reason, message)
        notice = Notice(reason=reason, message=message[:256])
        notices = [known for known in self.state.notices if known != notice]
        self.state = self.state.model_copy(update={"notices": [*notices, notice][-NOTICES:]})
        self.board.update(notices=self.state.notices)

    def _step_or_smaller(self) -> None:
        """One step; where the accelerator's memory does not suffice, the same step again in smaller packs."""
        try:
            self._step()
        except (torch.OutOfMemoryError, MemoryError):
            if self.model.root is not None:  # the others are within a pass that none finishes without this one
                raise
            capacity = self.smaller_packs()
            if not capacity or self.model.machine.device.type == "cpu":
                raise
            self._begin_again()
            log.warning("out of memory; going on with packs of %d tokens", capacity)
            torch.cuda.empty_cache()
            self.state = self.state.model_copy(update={"microbatch": 0, "step_loss": 0.0, "capacity": capacity})

    def smaller_packs(self) -> int:
        """Half the tokens of a pack at present, where that makes packs smaller; else 0."""
        return halved(self.state.capacity, self._lengths, self._packing)

    @property
    def _packing(self) -> bool:
        return self.training.packing and self.model.isolates

    def _begin_again(self) -> None:
        """Forget the unfinished step; of several ranks, its tokens too, since a rank knows only its own."""
        self.optimizer.clear()
        if self.peers.many:
            self.state = self._begun

    def _step(self) -> None:
        """All packs of a step from the present position on, then the update."""
        self._begun = self.state
        examples = self.schedule.documents(self.state.step)
        rounds = spread(examples, self._lengths, self.state.capacity, self._packing, self.peers.world)
        weight = self.objective.begin(examples.tolist(), self._measured(examples.tolist()))
        for number in range(self.state.microbatch, len(rounds)):
            self._obey_stop()
            self._pack(rounds[number], weight, number, len(rounds))
            if not self.peers.many and self._is_due():
                self.save()
            self.beat()
        self._update(weight)
        if self.peers.many and self.peers.most([self._is_due()])[0]:
            self.save()

    def _measured(self, examples: list[int]) -> float:
        """What the objective must know before a step, summed over its examples: packs without gradient, like others."""
        lengths = self.objective.measured_lengths(examples)
        if not len(lengths):
            return 0.0
        found = 0.0
        for packs in spread(
            np.arange(len(examples)), lengths, self.state.capacity, self.model.isolates, self.peers.world
        ):
            self._obey_stop()
            own, counts = self._share(packs)
            numbers = [examples[place] for place in own]
            found += counts * self._agreed(partial(self._measure, numbers))
            self.beat()
        return self.peers.total([found])[0]

    def _measure(self, examples: list[int]) -> float:
        return self.model.gathered(lambda: self.objective.measure(examples)) if examples else 0.0

    def _share(self, packs: list[list[int]]) -> tuple[list[int], bool]:
        """This rank's pack of a round, and whether it counts.

        Where weights are split no rank computes without the others: one without a pack takes the smallest for nothing.
        """
        own = packs[self.peers.rank]
        if own or self.model.root is None:
            return own, True
        return next(each for each in reversed(packs) if each), False

    def _is_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() - self._last_saved >= self.checkpoint_seconds and not self._suspicious()

    def _pack(self, packs: list[list[int]], weight: float, number: int, rounds: int) -> None:
        """One pack a rank, forward and backward."""
        started = time.monotonic()
        own, counts = self._share(packs)
        value = counts * self._agreed(lambda: self._own(own, weight, counts))
        self.state = self.state.model_copy(
            update={
                "microbatch": number + 1,
                "step_loss": self.state.step_loss + value,
                "tokens": self.state.tokens + sum(int(self._lengths[each].sum()) for each in packs),
                "seconds": self.state.seconds + time.monotonic() - started,
            }
        )
        self._tell(self.state.step + (number + 1) / rounds)

    def _agreed(self, compute: Callable[[], float]) -> float:
        """This rank's part of a round; what one rank met, all are told before the next."""
        trouble, value = None, 0.0
        try:
            value = compute()
        except (torch.OutOfMemoryError, MemoryError) as error:
            if not self.peers.many or self.model.root is not None:
                raise
            trouble = error
        broken, full, stop = self.peers.most([not math.isfinite(value), trouble is not None, self.stop.is_set()])
        if full:
            raise trouble or torch.OutOfMemoryError("another rank ran out of memory")
        if broken:
            raise self._not_finite(f"the loss is {value if not self.peers.many else 'not finite'}")
        self._told_to_stop = bool(stop)
        return value

    def _own(self, examples: list[int], weight: float, counts: bool) -> float:
        """Forward and backward of one pack; its gradient is that of the step's mean, over ``weight``."""
        if not examples:
            return 0.0
        loss = self.model.gathered(lambda: self.objective.loss(examples))
        value = loss.item()
        if math.isfinite(value) or self.model.root is not None:
            (loss * int(counts) / weight).backward()  # type: ignore[no-untyped-call]
        return value

    def _update(self, weight: float) -> None:
        self.checkpoints.fence.check()
        started = time.monotonic()
        self._gather()
        step = self.state.step
        rate = learning_rate(step, self.schedule.total_steps, self._peak)
        norm = self.optimizer.step(rate)
        if not math.isfinite(norm):
            raise self._not_finite(f"the gradient's norm is {norm}")
        loss = self.state.step_loss / weight
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
        self._guard_against_divergence(loss)
        log.info("step %d/%d loss %.4f lr %.2e", step + 1, self.schedule.total_steps, loss, rate)

    def _gather(self) -> None:
        """Of several ranks, make one step: gradients and losses are added up."""
        if not self.peers.many:
            return
        self.optimizer.gather()
        (loss,) = self.peers.total([self.state.step_loss])
        self.state = self.state.model_copy(update={"step_loss": loss})

    def _tell(self, step: float) -> None:
        seconds = self.state.seconds - self._seconds_at_start
        rate = (self.state.tokens - self._tokens_at_start) / seconds if seconds > 0 else None
        self.board.update(
            share=self.share(step),
            step=round(step, 3),
            tokens=self.state.tokens,
            tokens_per_second=None if rate is None else round(rate, 1),
        )

    def share(self, step: float) -> float:
        """How much of training is done at ``step``, 0..1: by steps, or by time where maxDuration will end it first."""
        return min(1.0, max(step / self.schedule.total_steps, self.state.seconds / self._limit))

    def _suspicious(self) -> bool:
        """Whether the last step was a spike: what comes after it must not push out a checkpoint from before."""
        return spikes.is_spike(self._recent())

    def _recent(self) -> list[float]:
        """The losses that the rules about spikes look at."""
        return [loss for _, loss in self.state.curve[-spikes.WINDOW - spikes.RUN :]]

    def _guard_against_divergence(self, loss: float) -> None:
        """Log a spike; raise ``LossSpike`` after a run of them."""
        losses, step = self._recent(), self.state.step
        if spikes.is_spike(losses):
            log.warning("step %d: loss %.4f is a spike", step, loss)
        if spikes.diverged(losses):
            raise spikes.divergence(losses, step, self.checkpoints.last_step, self.training.learning_rate)

    def _alive(self) -> None:
        """Between parts of a measurement: a sign of life, and a look at the stop."""
        self.beat()
        self._obey_stop()

    def _obey_stop(self) -> None:
        """Save and end; of several ranks, when all know of it, and without what the step had begun."""
        if self._told_to_stop if self.peers.many else self.stop.is_set():
            if self.peers.many and self.state.microbatch:
                self._begin_again()
            self.save()
            raise StageError(Reason.TERMINATED, f"stopped at step {self.state.step}; the checkpoint is saved.")

    def _not_finite(self, what: str) -> StageError:
        return StageError(
            Reason.LOSS_NAN,
            f"{what} at step {self.state.step + 1}. Lower training.learningRate (now {self.training.learning_rate}), "
            "and look for broken texts in the dataset.",
        )
