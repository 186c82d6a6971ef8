"""Stage train: base evaluation, training with checkpoints, tuned evaluation, in one process.

Base first: it is the reference, and it shows trouble with memory before hours are spent. Its scores are kept, so that
a pod that goes on from a checkpoint does not measure again. A whole model is merged and written before it is measured:
what is scored is what is published. Runs without token, network and service account.
"""

import faulthandler
import json
import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydantic
from tuneloop_core.api.finetunejob import CheckpointSettings, EvaluationSettings, Method, Training
from tuneloop_core.api.formats import parse_duration
from tuneloop_core.stages import CheckResult, Reason, Stage, TrainInput, TrainResult

from tuneloop_trainer import recompute
from tuneloop_trainer.batches import Schedule
from tuneloop_trainer.checkpoints import Checkpoints, TrainingState, training_digest
from tuneloop_trainer.costs import Costs
from tuneloop_trainer.encode import Encoder, load_encoder
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.evaluation import Evaluated, HeldOut, evaluate, evaluation_loss, generation_tokens
from tuneloop_trainer.files import folder_aside, remove_asides, seal, write_atomic
from tuneloop_trainer.learning import Learning, Side
from tuneloop_trainer.lmeval.scores import Meter, score
from tuneloop_trainer.loop import PACK_TOKENS, Loop
from tuneloop_trainer.machine import Machine, peak_memory, prepare_machine
from tuneloop_trainer.model import TunedModel, load_model, verify
from tuneloop_trainer.objectives import Objective, Tick
from tuneloop_trainer.paths import Paths
from tuneloop_trainer.peers import ALONE, Peers, is_lost, peer_lost
from tuneloop_trainer.progress import Board, ProgressServer, thinned
from tuneloop_trainer.shortage import leave_packs, memory_told, with_packs_left
from tuneloop_trainer.stage import end_at_once, read_record
from tuneloop_trainer.stops import deadline, stopping
from tuneloop_trainer.watchdog import Watchdog

log = logging.getLogger("tuneloop")

MESSAGE_SECONDS = 600.0  # at least so long one rank may wait for another: one loads its model faster than the next
SPLIT_SECONDS = 7200.0  # there the leader alone reads and writes a large model; who is lost, the alarm sees
QUIET_SECONDS = 600.0  # outside steps lm-eval may import and read tasks for so long before it asks the model
FOLLOWERS_PATIENCE = 1.2
"""All ranks stand still when one does: the leader says so first, and the others only lost it."""


def run(stage_input: TrainInput, paths: Paths) -> TrainResult:
    """Train; raises ``Terminated`` (exit 143) after SIGTERM with the checkpoint saved.

    As one of several processes: each does the same, and only the leader writes and tells.
    """
    peers = Peers.from_environment()
    (paths.work / "train").mkdir(parents=True, exist_ok=True)
    stage_input = with_packs_left(stage_input, paths.work / "train")
    board = Board(metrics_file=paths.work / "train/metrics.jsonl" if peers.leads else None)
    server = ProgressServer(board) if peers.leads else None
    try:
        with memory_told(stage_input), stopping() as stop, deadline(stage_input.deadline_seconds, stop):
            result = _Run(stage_input, paths, board, stop, peers).run()
            peers.leave()  # not after a failure: saying good-bye to those who are gone takes long
            return result
    except RuntimeError as error:
        if not peers.many or not is_lost(error):
            raise
        raise peer_lost(error) from error
    finally:
        if server is not None:
            server.close()


class _Run:
    """The settings of one run, parsed, and its parts."""

    def __init__(
        self, stage_input: TrainInput, paths: Paths, board: Board, stop: threading.Event, peers: Peers = ALONE
    ) -> None:
        self.input, self.recompute, self.shard = stage_input, stage_input.recompute, stage_input.shard
        self.method = Method.model_validate(stage_input.method)
        self.training = Training.model_validate(stage_input.training)
        self.checkpoint = CheckpointSettings.model_validate(stage_input.checkpoint)
        self.evaluation = EvaluationSettings.model_validate(stage_input.evaluation)
        self.digest = training_digest(self.method, self.training, self.evaluation)
        self.folder = paths.work / "train"
        self.paths, self.board, self.stop, self.peers = paths, board, stop, peers
        self.machine = prepare_machine(
            stage_input.accelerators, peers.local_rank, simulated=stage_input.simulated_accelerators
        )
        seconds = SPLIT_SECONDS if self.shard else MESSAGE_SECONDS
        peers.join(self.machine.device.type, max(seconds, parse_duration(self.training.step_timeout)))
        self.capacity = int(peers.tell(stage_input.pack_tokens or PACK_TOKENS[self.machine.device.type]))
        self.costs = Costs()

    def run(self) -> TrainResult:
        """Everything, in order."""
        log.info("training on %s, rank %d of %d", self.machine.words, self.peers.rank, self.peers.world)
        model, encoder = self._load()
        self._tick(0.0)
        side = Side.read(self.paths.data, "train", self.method)
        held_out = HeldOut(
            Side.read(self.paths.data, "validation", self.method), self.evaluation, self.training.seed, self.capacity
        )
        first = side.examples.flat(range(min(2, len(side.examples))))[:2]
        model.gathered(lambda: verify(model, first))
        schedule = self._schedule(side)
        self._plan_costs(schedule, held_out, encoder)
        with self._watched(model):
            objective, scored = self._objectives(model, side, schedule, held_out)
            base = self._base(model, encoder, held_out, scored)
        loop = self._loop(model, objective, schedule)
        loop.held_out_loss = lambda tick: evaluation_loss(model, scored, held_out, tick)
        state = self._train(loop)
        loop.checkpoints.fence.check()
        self._save(model)
        self.peers.wait()  # for the leader, who writes: nobody is watched meanwhile
        self.board.enter("TunedEvaluation")
        with self._watched(model):
            tuned = self._evaluate(model, encoder, held_out, scored, self._tick)
        if self.peers.leads:
            self._write_samples(encoder, held_out, base, tuned)
        self.board.enter("Done")
        return self._result(loop, state, model, base, tuned)

    def _load(self) -> tuple[TunedModel, Encoder]:
        encoder = load_encoder(self.paths.model)
        among = self.peers if self.shard and self.peers.many else None
        model = load_model(self.paths.model, self.machine, self.method, self.training.seed, self._labels(), among)
        if self.recompute:
            log.info("%d layers are computed again in backward, to save memory", recompute.enable(model.causal))
        return model, encoder

    def _labels(self) -> list[str]:
        """Names of the classes, by number, where there are any."""
        if not self.method.classifies:
            return []
        labels: list[str] = json.loads((self.paths.data / "labels.json").read_text(encoding="utf-8"))
        return labels

    def _schedule(self, side: Side) -> Schedule:
        settings = self.training
        lengths = side.examples.lengths
        return Schedule(lengths, settings.tokens_per_step, settings.epochs, settings.max_steps, settings.seed)

    def _objectives(
        self, model: TunedModel, side: Side, schedule: Schedule, held_out: HeldOut
    ) -> tuple[Objective, Objective]:
        """What is trained and what is scored; the base model's view of the answers, where they need it, comes first."""
        if self.method.objective != "SFT":
            self.board.enter("BaseEvaluation")
        learning = Learning(self.method, self.training.seed, self.folder, self.digest, self.peers)
        first, both = self.costs.references
        trained = learning.objective(model, side, schedule.used(), self._part(0.0, first))
        return trained, learning.objective(model, held_out.side, held_out.chosen, self._part(first, both))

    def _loop(self, model: TunedModel, objective: Objective, schedule: Schedule) -> Loop:
        checkpoints = Checkpoints(self.folder / "checkpoints", self.checkpoint.keep, leads=self.peers.leads)
        seconds = parse_duration(self.checkpoint.interval)
        state = TrainingState(input_digest=self.digest, capacity=self.capacity)
        parts = (model, objective, schedule, self.training, checkpoints, seconds, self.board, self.stop, state)
        return Loop(*parts, peers=self.peers)

    def _plan_costs(self, schedule: Schedule, held_out: HeldOut, encoder: Encoder) -> None:
        """Shares of the phases, for percent and ETA."""
        epochs = schedule.total_steps / schedule.steps_per_epoch
        self.costs = Costs.of(
            self.method.objective,
            used=float(schedule.lengths[schedule.used()].sum()),
            held_out=held_out.tokens,
            generated=generation_tokens(held_out.questions(encoder), self.evaluation),
            asked=_task_tokens(self.paths) if self.evaluation.tasks else 0,
            seen=float(schedule.lengths.sum()) * epochs,
        )
        self.board.costs = self.costs.phases
        self.board.update(total_steps=schedule.total_steps)

    def _base(self, model: TunedModel, encoder: Encoder, held_out: HeldOut, scored: Objective) -> Evaluated:
        """The base model's scores, from an earlier try if there was one."""
        path = self.folder / "base.json"
        kept = self.peers.tell(_dumped(_read_kept(path, self.digest)))
        if kept is not None:
            log.info("the base model was evaluated before")
            return Evaluated.model_validate(kept)
        begin = self.costs.references[1]
        self.board.enter("BaseEvaluation", share=begin)
        with model.as_base():
            base = self._evaluate(model, encoder, held_out, scored, self._part(begin, 1.0))
        base = _without_rewards(base)
        if not self.peers.leads:
            return base
        write_atomic(path, _Kept(input_digest=self.digest, evaluated=base).model_dump_json().encode())
        log.info("base model: %s", base.scores.model_dump_json(exclude_none=True))
        return base

    def _evaluate(
        self, model: TunedModel, encoder: Encoder, held_out: HeldOut, scored: Objective, tick: Tick
    ) -> Evaluated:
        """Scores on the held-out rows and on evaluation.tasks, of the model as it is now."""
        held = self.costs.held_share
        found = model.gathered(lambda: evaluate(model, encoder, held_out, scored, lambda share: tick(share * held)))
        meter = Meter(round(self.costs.asked), lambda share: tick(held + share * (1 - held)))
        tasks = model.gathered(lambda: score(model, encoder, self.evaluation.tasks, self.paths, meter))
        return found.model_copy(update={"scores": found.scores.model_copy(update={"tasks": tasks})})

    def _train(self, loop: Loop) -> TrainingState:
        """Go on from the last checkpoint or begin; what it found is told with the phase, so that no poll sees less."""
        resumed = loop.resume()
        self.board.enter(
            "Training",
            resumes=loop.state.resumes,
            checkpoint_step=loop.checkpoints.last_step,
            checkpoint_time=loop.checkpoints.last_time,
            curve=thinned(loop.state.curve),
            best_step=loop.best_step,
            notices=loop.state.notices,
        )
        if resumed:
            self.board.skip_to(loop.share(loop.state.step))
        with self._watchdog(0.0) as watchdog, memory_told(self.input, lambda: self._leave_packs(loop)):
            loop.beat, loop.unwatched = watchdog.beat, watchdog.paused
            return loop.run()

    def _leave_packs(self, loop: Loop) -> str:
        """Of a split model: what another try goes by after memory ran out in packs."""
        return leave_packs(loop.smaller_packs(), self.folder) if self.shard else ""

    def _watchdog(self, least: float) -> Watchdog:
        """Gives up after training.stepTimeout without a sign of life, or ``least`` seconds where that is longer."""
        patience = max(least, parse_duration(self.training.step_timeout))
        return Watchdog(patience * (1 if self.peers.leads else FOLLOWERS_PATIENCE), self._hang)

    @contextmanager
    def _watched(self, model: TunedModel) -> Iterator[None]:
        """Outside steps: each forward pass of the model is a sign of life, and a look at the stop."""
        with self._watchdog(QUIET_SECONDS) as watchdog:

            def alive(*_: object) -> None:
                watchdog.beat()
                self._obey_stop()

            hook = model.causal.base_model.register_forward_pre_hook(alive)
            try:
                yield
            finally:
                hook.remove()

    def _hang(self, silence: float) -> None:
        """What the watchdog does: where every thread is goes into the log, the reason into the last words."""
        faulthandler.dump_traceback(all_threads=True)
        progress = self.board.snapshot()
        message = (
            f"no progress for {silence:.0f} s (training.stepTimeout {self.training.step_timeout}) in {progress.phase}, "
            f"at step {progress.step:g} of {progress.total_steps}. The pod's log shows where every thread stood. If it "
            "is just slow, raise training.stepTimeout."
        )
        end_at_once(Stage.TRAIN, StageError(Reason.STEP_TIMEOUT, message), self.paths)

    def _save(self, model: TunedModel) -> None:
        """What publish takes: the adapter, or the whole model."""
        self.board.enter("Saving")
        whole = self.method.publishes_model
        if not self.peers.leads:
            if whole:
                model.save_whole(self.paths.model, None)
            return
        target = self.folder / ("model" if whole else "adapter")
        remove_asides(self.folder)
        with folder_aside(self.folder) as aside:
            if whole:
                model.save_whole(self.paths.model, aside)
            else:
                model.save_adapter(aside)
            shutil.rmtree(target, ignore_errors=True)
            seal(aside, target)

    def _part(self, begin: float, end: float) -> Tick:
        """What is told the share that is done of a part of the present phase."""
        return lambda share: self._tick(begin + share * (end - begin))

    def _tick(self, share: float) -> None:
        self.board.update(share=share)
        self._obey_stop()

    def _obey_stop(self) -> None:
        if self.stop.is_set():
            raise StageError(Reason.TERMINATED, "stopped during evaluation; what was trained is in the checkpoint.")

    def _write_samples(self, encoder: Encoder, held_out: HeldOut, base: Evaluated, tuned: Evaluated) -> None:
        questions = held_out.questions(encoder)
        lines = (
            Sample(question=q.text, reference=q.reference, base=b, tuned=t).model_dump_json()
            for q, b, t in zip(questions, base.answers, tuned.answers, strict=True)
        )
        write_atomic(self.folder / "samples.jsonl", "".join(line + "\n" for line in lines).encode())

    def _result(
        self, loop: Loop, state: TrainingState, model: TunedModel, base: Evaluated, tuned: Evaluated
    ) -> TrainResult:
        log.info("tuned model: %s", tuned.scores.model_dump_json(exclude_none=True))
        return TrainResult(
            base=base.scores,
            tuned=tuned.scores,
            steps=state.step,
            epochs=round(state.step / loop.schedule.steps_per_epoch, 3),
            tokens=state.tokens,
            seconds=round(state.seconds, 2),
            tokens_per_second=round(state.tokens / max(state.seconds, 1e-9), 1),
            final_loss=round(state.last_loss or 0.0, 6),
            peak_memory_bytes=int(self.peers.most([peak_memory(self.machine.device)])[0]),
            trainable_parameters=model.trainable_parameters,
            total_parameters=model.total_parameters,
            resumes=state.resumes,
            curve=thinned(state.curve),
            checkpoint_time=loop.checkpoints.last_time,
            best_step=loop.best_step,
            notices=state.notices,
        )


def _task_tokens(paths: Paths) -> int:
    """What asking evaluation.tasks costs, as the check stage found."""
    record = read_record(Stage.CHECK, paths)
    return CheckResult.model_validate(record.result).task_tokens if record is not None else 0


def _dumped(evaluated: Evaluated | None) -> dict[str, Any] | None:
    return None if evaluated is None else evaluated.model_dump(mode="json")


def _without_rewards(base: Evaluated) -> Evaluated:
    """Rewards are counted from the base: its own are 0 but for rounding, and no score."""
    scores = base.scores.model_copy(update={"reward_accuracy": None, "reward_margin": None})
    return base.model_copy(update={"scores": scores})


class Sample(pydantic.BaseModel):
    """A line of samples.jsonl."""

    question: str
    reference: str
    base: str
    tuned: str


class _Kept(pydantic.BaseModel):
    """base.json: scores of the base model for one input."""

    input_digest: str
    evaluated: Evaluated


def _read_kept(path: Path, digest: str) -> Evaluated | None:
    try:
        kept = _Kept.model_validate_json(path.read_bytes())
    except (OSError, pydantic.ValidationError):
        return None
    return kept.evaluated if kept.input_digest == digest else None


__all__ = ["Machine", "Sample", "run"]
