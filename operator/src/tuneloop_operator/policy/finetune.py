"""One look at a FineTuneJob: its stages in order, the first that is not done decides.

Facts in, actions and status out. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from tuneloop_core.api.finetunejob import FineTuneJob
from tuneloop_core.api.finetunejob_status import (
    CheckpointStatus,
    FineTuneJobStatus,
    ProgressStatus,
    StageStatus,
)
from tuneloop_core.api.formats import format_duration
from tuneloop_core.plan.job import Facts
from tuneloop_core.stages import Progress, Stage
from tuneloop_operator import attempts
from tuneloop_operator.policy import conditions, planning, reasons, results, usage
from tuneloop_operator.policy.actions import Action
from tuneloop_operator.policy.conditions import Wanted, cut, holds, timestamp
from tuneloop_operator.policy.pods import leads
from tuneloop_operator.policy.verdicts import Case, StageFacts, State, Verdict, invalid_result, judge

STAGE_CONDITIONS = {
    Stage.FETCH: "Fetched",
    Stage.CHECK: "Checked",
    Stage.PLAN: "Planned",
    Stage.TRAIN: "Trained",
    Stage.PUBLISH: "Published",
}
STAGE_WORDS = {
    Stage.FETCH: "Fetching",
    Stage.CHECK: "Checking",
    Stage.PLAN: "Planning",
    Stage.TRAIN: "Training",
    Stage.PUBLISH: "Publishing",
}
PROGRESS_EVERY_SECONDS = 8.0
"""Progress is written when the last one is this old: with polls every 5 s that is at least every 10 s."""


@dataclass(frozen=True)
class JobFacts:
    """What the cluster knows of one FineTuneJob; ``trouble`` met the last try to act, ``planning`` is the plan's."""

    now: datetime
    stages: Mapping[Stage, StageFacts] = field(default_factory=dict)
    progress: Progress | None = None
    trouble: Verdict | None = None
    planning: Facts = field(default_factory=Facts)


@dataclass(frozen=True)
class Decision:
    """What to do, what the status should be if nothing is left to do, and when to look again (seconds)."""

    status: FineTuneJobStatus
    actions: tuple[Action, ...] = ()
    look_again: float | None = None


def is_finished(job: FineTuneJob) -> bool:
    """Complete, or Failed without a retry since: nothing is done any more."""
    if attempts.may_go_on(job.spec.retries, attempts.retries_used(job.status)):
        return holds(job.status.conditions, conditions.COMPLETE)
    return holds(job.status.conditions, conditions.COMPLETE) or holds(job.status.conditions, conditions.FAILED)


def decide(job: FineTuneJob, facts: JobFacts) -> Decision:
    """The whole decision for one look."""
    if is_finished(job):
        return Decision(_seen(job))
    draft = _Draft(job, facts)
    for stage in Stage:
        verdict = draft.settle(stage)
        if verdict.state is not State.DONE:
            return Decision(draft.finish(stage, verdict), verdict.actions, verdict.look_again)
    done = Verdict(State.DONE, reasons.SUCCEEDED, results.words(Stage.PUBLISH, draft.current.status))
    return Decision(draft.finish(Stage.PUBLISH, done))


def _seen(job: FineTuneJob) -> FineTuneJobStatus:
    """A finished job only notes that it saw a change of what may still change."""
    generation = job.metadata.generation
    if job.status.observed_generation == generation:
        return job.status
    updated = [item.model_copy(update={"observed_generation": generation}) for item in job.status.conditions]
    return job.status.model_copy(update={"observed_generation": generation, "conditions": updated})


class _Draft:
    """The status in the making: fields that stages set, and the stages themselves."""

    def __init__(self, job: FineTuneJob, facts: JobFacts) -> None:
        self.job, self.facts = job, facts
        self.fields: dict[str, Any] = {}
        known = {item.name: item for item in job.status.stages}
        self.stages = {stage: known.get(stage.value, StageStatus(name=stage.value, state="Pending")) for stage in Stage}

    @property
    def current(self) -> FineTuneJob:
        """The job with what this look has found so far."""
        return self.job.model_copy(update={"status": self.job.status.model_copy(update=self.fields)})

    def settle(self, stage: Stage) -> Verdict:
        """Judge a stage and note the judgement."""
        previous = self.stages[stage]
        if previous.state == "Succeeded":
            return Verdict(State.DONE, reasons.SUCCEEDED, previous.message)
        verdict = self._plan() if stage is Stage.PLAN else self._judge(stage, previous)
        if verdict.state is State.DONE and verdict.said is not None:
            verdict = self._absorb(stage, verdict)
        self.stages[stage] = self._noted(stage, previous, verdict)
        return verdict

    def _judge(self, stage: Stage, previous: StageStatus) -> Verdict:
        if self.facts.trouble is not None:
            return self.facts.trouble
        spec = self.job.spec
        stage_facts = self.facts.stages.get(stage, StageFacts())
        uid = self.job.metadata.uid
        known = self.job.status.progress
        case = Case(stage, previous, stage_facts, uid, spec.suspend, spec.retries, self.facts.now, spec.priority)
        verdict = judge(replace(case, heard=known.updated_time or "" if known else ""))
        if stage is Stage.TRAIN and verdict.state is not State.DONE:
            self._note_progress()
            if verdict.state is State.FAILED or usage.has_news(self.job, stage_facts.pods, self.facts.now):
                self._note_usage()
        return verdict

    def _plan(self) -> Verdict:
        found = planning.plan(self.current, self.facts.planning)
        self.fields["plan"] = found.status
        return planning.judge(found)

    def _absorb(self, stage: Stage, verdict: Verdict) -> Verdict:
        assert verdict.said is not None
        pods = self.facts.stages[stage].pods
        try:
            self.fields |= results.absorb(stage, self.current, verdict.said, pods, self.facts.now)
        except ValidationError as error:
            return invalid_result(stage, error)
        told = replace(verdict, message=verdict.said.message or results.words(stage, self.current.status))
        return self._gated(told) if stage is Stage.TRAIN else told

    def _gated(self, verdict: Verdict) -> Verdict:
        missed = [gate.message for gate in self.fields["evaluation"].gates if not gate.passed]
        if not missed:
            return verdict
        message = f"{'; '.join(missed)}. Nothing was published; the work is kept"
        return Verdict(State.FAILED, reasons.GATE_FAILED, message)

    def _note_progress(self) -> None:
        """Take over what the pod said, but not at every poll: each is a write."""
        found, known = self.facts.progress, self.job.status.progress
        if found is None or (known is not None and not _is_due(known, found, self.facts.now)):
            return
        self._note_usage()
        self.fields["progress"] = _progress(found, self.facts.now)
        self.fields["resumes"] = max(found.resumes, self.job.status.resumes)  # a pod that loads does not know yet
        if found.notices:
            self.fields["notices"] = results.notices(found.notices)
        if found.curve:
            self.fields["curve"] = results.curve(found.curve)
        if found.checkpoint_step is not None and found.checkpoint_time:
            self.fields["checkpoint"] = CheckpointStatus(
                step=found.checkpoint_step, time=found.checkpoint_time, best_step=found.best_step
            )
        elif found.phase == "Training":  # begun anew
            self.fields["checkpoint"] = None

    def _note_usage(self) -> None:
        pods = self.facts.stages.get(Stage.TRAIN, StageFacts()).pods
        self.fields["usage"] = usage.measured(self.job, pods, self.facts.now)

    def _noted(self, stage: Stage, previous: StageStatus, verdict: Verdict) -> StageStatus:
        facts = self.facts.stages.get(stage, StageFacts())
        k8s_job = facts.job if verdict.state is not State.STALLED or verdict.counted_uid else None
        update: dict[str, Any] = {"reason": verdict.reason, "message": cut(verdict.message)}
        if verdict.state in (State.STALLED, State.FAILED) and (verdict.counted_uid or verdict.said):
            update |= {"state": "Failed", "attempts": previous.attempts + 1}
        elif verdict.state is not State.STALLED:
            update["state"] = _STAGE_STATES[verdict.state]
        if verdict.state is State.DONE or verdict.counted_uid:
            update["finish_time"] = timestamp(self.facts.now)
        if k8s_job is not None:
            update["job_uid"] = k8s_job["metadata"]["uid"]
            update["start_time"] = previous.start_time or k8s_job["metadata"].get("creationTimestamp")
        if verdict.retries_used is not None or verdict.reason in (reasons.SUCCEEDED, reasons.GATE_FAILED):
            update["retries_used"] = verdict.retries_used
        if stage is Stage.TRAIN:
            update |= _train_attempts(previous, verdict, sum(map(leads, facts.pods)))
        elif verdict.state not in (State.STALLED, State.FAILED):
            update["attempts"] = max(previous.attempts, len(facts.pods))
        return previous.model_copy(update=update)

    def finish(self, stage: Stage, verdict: Verdict) -> FineTuneJobStatus:
        """The status that follows from the stage which decides."""
        generation = self.job.metadata.generation
        feasible = planning.feasible(self.current.status.plan, self.stages[Stage.PLAN])
        wanted = [*summary(stage, verdict), *self._stage_conditions(stage), *feasible]
        self.fields |= {
            "observed_generation": generation,
            "conditions": conditions.merge(self.job.status.conditions, wanted, generation, self.facts.now),
            "stage": _stage_word(stage, verdict),
            "stages": [self.stages[each] for each in Stage],
        }
        return self.job.status.model_copy(update=self.fields)

    def _stage_conditions(self, last: Stage) -> list[Wanted]:
        """One for each stage that was begun."""
        found = []
        for stage in Stage:
            noted = self.stages[stage]
            done = noted.state == "Succeeded"
            found.append(Wanted(STAGE_CONDITIONS[stage], done, noted.reason or noted.state, noted.message))
            if stage is last:
                break
        return found


def _train_attempts(previous: StageStatus, verdict: Verdict, pods: int) -> dict[str, Any]:
    """Pods of all its Jobs; one that goes on after a final failure has not ended."""
    before = 0 if previous.retries_used is None else previous.retries_used + 1
    going_on = {} if verdict.state in (State.FAILED, State.DONE) else {"finish_time": None}
    return going_on | {"attempts": max(previous.attempts, before + pods)}


_STAGE_STATES = {
    State.DONE: "Succeeded",
    State.RUNNING: "Running",
    State.PENDING: "Pending",
    State.SUSPENDED: "Pending",
    State.FAILED: "Failed",
}


def summary(stage: Stage, verdict: Verdict) -> list[Wanted]:
    """The conditions that kstatus, kubectl wait and people look at first."""
    ready = Wanted(conditions.READY, verdict.state is State.DONE, verdict.reason, verdict.message)
    if verdict.state is State.DONE:
        return [ready, Wanted(conditions.COMPLETE, True, verdict.reason, verdict.message)]
    if verdict.state is State.SUSPENDED:
        return [ready, Wanted(conditions.SUSPENDED, True, verdict.reason, verdict.message)]
    if verdict.state is State.STALLED:
        return [ready, Wanted(conditions.STALLED, True, verdict.reason, verdict.message)]
    if verdict.state is State.FAILED:
        stalled = Wanted(conditions.STALLED, True, verdict.reason, verdict.message)
        return [ready, stalled, Wanted(conditions.FAILED, True, verdict.reason, verdict.message)]
    return [ready, Wanted(conditions.RECONCILING, True, verdict.reason, f"{stage.value}: {verdict.message}")]


def _stage_word(stage: Stage, verdict: Verdict) -> str:
    if verdict.state is State.DONE:
        return "Succeeded"
    if verdict.state in (State.FAILED, State.SUSPENDED):
        return verdict.state.value
    if verdict.reason == reasons.QUEUE_WAITING:
        return "Queued"
    return STAGE_WORDS[stage]


def _is_due(known: ProgressStatus, found: Progress, now: datetime) -> bool:
    if known.updated_time is None or known.phase != found.phase:
        return True
    return (now - conditions.parse_time(known.updated_time)).total_seconds() >= PROGRESS_EVERY_SECONDS


def _progress(found: Progress, now: datetime) -> ProgressStatus:
    return ProgressStatus(
        phase=found.phase,
        step=round(found.step, 2),
        total_steps=found.total_steps,
        percent=min(100, max(0, found.percent)),
        loss=round(found.loss, 4) if found.loss is not None else None,
        tokens_per_second=round(found.tokens_per_second, 1) if found.tokens_per_second is not None else None,
        eta=format_duration(found.eta_seconds) if found.eta_seconds is not None else "",
        updated_time=timestamp(now),
    )
