"""Reconcile of one FineTuneJob: gather, decide, act until nothing is left to do, write the status once.

Jobs are only ever created, suspended, given another retry limit or deleted; never applied.
"""

from tuneloop_core.api.finetunejob import FineTuneJob
from tuneloop_core.stages import Stage
from tuneloop_operator.build.stages import build_stage
from tuneloop_operator.kube.resources import Obj
from tuneloop_operator.names import JOB_STAGES, Key, stage_job
from tuneloop_operator.policy.finetune import Decision, JobFacts, decide, is_finished
from tuneloop_operator.policy.results import fetch_result
from tuneloop_operator.policy.transitions import condition_notes, stage_notes
from tuneloop_operator.policy.verdicts import Verdict
from tuneloop_operator.reconcile.context import Context
from tuneloop_operator.reconcile.jobs import StageJobs
from tuneloop_operator.reconcile.status import write_status

MAX_STEPS = 8
"""Decisions in one reconcile: each stage takes one at most."""


class FineTuneReconciler:
    """All FineTuneJobs of this process."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._jobs = StageJobs(context)

    def forget(self, key: Key) -> None:
        """The resource is gone; nothing is kept about it."""

    async def reconcile(self, key: Key, obj: Obj) -> float | None:
        """One look; returns after how many seconds to look again, None when an event will tell."""
        job = FineTuneJob.model_validate(obj)
        decision = await self._settle(key, job)
        finished = is_finished(decision.status)
        self._poll(key, finished=finished)
        written = await write_status(self._context.client, obj, decision.status.to_dict())
        if written is not None:
            self._context.cache.put(written)
            await self._tell(obj, job, decision)
        if finished:
            return None
        return decision.look_again or self._context.settings.resync_seconds

    async def _settle(self, key: Key, job: FineTuneJob) -> Decision:
        """Decide and act until a decision asks for nothing more; a later stage sees what an earlier one found."""
        if is_finished(job.status):
            return decide(job, JobFacts(now=self._context.now()))
        decision = decide(job, await self._facts(key, job))
        for _ in range(MAX_STEPS):
            if not decision.actions:
                break
            trouble = await self._act(job, decision)
            decision = decide(job, await self._facts(key, job, trouble))
        return decision

    async def _facts(self, key: Key, job: FineTuneJob, trouble: Verdict | None = None) -> JobFacts:
        done = {stage.name for stage in job.status.stages if stage.state == "Succeeded"}
        stages = {
            stage: await self._jobs.with_events(key, self._jobs.find(key, stage, stage_job(key.name, stage)))
            for stage in JOB_STAGES
            if stage.value not in done
        }
        return JobFacts(self._context.now(), stages, self._context.polls.progress(key), trouble)

    async def _act(self, job: FineTuneJob, decision: Decision) -> Verdict | None:
        settings, version = self._context.settings, self._context.version

        def build(stage: Stage) -> Obj:
            return build_stage(stage, job, fetch_result(decision.status), settings, version)

        return await self._jobs.act(job.metadata.namespace, decision.actions, build)

    def _poll(self, key: Key, *, finished: bool) -> None:
        """Ask the running train pod for its progress, and nobody once it has ended."""
        facts = self._jobs.find(key, Stage.TRAIN, stage_job(key.name, Stage.TRAIN))
        running = [pod for pod in facts.pods if pod.get("status", {}).get("phase") == "Running"]
        ip = running[-1]["status"].get("podIP") if running and not finished else None
        self._context.polls.watch_training(key, ip)

    async def _tell(self, obj: Obj, job: FineTuneJob, decision: Decision) -> None:
        notes = stage_notes(job.status.stages, decision.status.stages)
        notes += condition_notes(job.status.conditions, decision.status.conditions)
        for note in notes:
            await self._context.events.tell(obj, note.reason, note.message, warning=note.warning)
