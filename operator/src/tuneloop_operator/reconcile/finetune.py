"""Reconcile of one FineTuneJob: gather, decide, act until nothing is left to do, write the status once.

Jobs are only ever created, suspended, given another retry limit or deleted; never applied.
"""

from pydantic import ValidationError

from tuneloop_core.api.finetunejob import FineTuneJob
from tuneloop_core.plan.job import Facts
from tuneloop_core.settings import Settings
from tuneloop_core.stages import Stage
from tuneloop_operator import attempts
from tuneloop_operator.build.peers import build_peers
from tuneloop_operator.build.sizes import train_cores, train_memory_limit
from tuneloop_operator.build.stages import build_stage
from tuneloop_operator.kube.resources import Obj
from tuneloop_operator.names import JOB_STAGES, Key, stage_job
from tuneloop_operator.policy.actions import CreateStage
from tuneloop_operator.policy.finetune import Decision, JobFacts, decide, is_finished
from tuneloop_operator.policy.pods import leads
from tuneloop_operator.policy.results import fetch_result
from tuneloop_operator.policy.secrets import require_allowed
from tuneloop_operator.policy.transitions import condition_notes, stage_notes, training_notes
from tuneloop_operator.policy.verdicts import Verdict
from tuneloop_operator.reconcile.apply import Applier
from tuneloop_operator.reconcile.context import Context
from tuneloop_operator.reconcile.jobs import StageJobs
from tuneloop_operator.reconcile.ledger import Ledger
from tuneloop_operator.reconcile.nodes import Nodes
from tuneloop_operator.reconcile.status import write_status
from tuneloop_operator.reconcile.storeuse import StoreUses
from tuneloop_operator.reconcile.troubles import REFUSALS, verdict_of
from tuneloop_operator.reconcile.unreadable import tell_unreadable

MAX_STEPS = 8
"""Decisions in one reconcile: each stage takes one at most."""


class FineTuneReconciler:
    """All FineTuneJobs of this process."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._jobs = StageJobs(context)
        self._nodes = Nodes(context.client, allowed=context.settings.cluster_scoped_rights)
        self._ledger = Ledger()
        self._uses = StoreUses(context)
        self._applier = Applier(context)

    def forget(self, key: Key) -> None:
        """The resource is gone; nothing is kept about it."""
        self._ledger.forget(key)
        self._applier.forget(key)

    async def reconcile(self, key: Key, obj: Obj) -> float | None:
        """One look; returns after how many seconds to look again, None when an event will tell."""
        try:
            job = FineTuneJob.model_validate(obj)
        except ValidationError as error:
            return await tell_unreadable(self._context, obj, error)
        decision = await self._settle(key, job)
        finished = is_finished(job.model_copy(update={"status": decision.status}))
        self._poll(key, job, finished=finished)
        written = await write_status(self._context.client, obj, decision.status.to_dict())
        self._ledger.note(key, job, decision.status)
        if written is not None:
            self._context.cache.put(written)
            await self._tell(obj, job, decision)
        if finished:
            return None
        return decision.look_again or self._context.settings.resync_seconds

    async def _settle(self, key: Key, job: FineTuneJob) -> Decision:
        """Decide and act until a decision asks for nothing more; a later stage sees what an earlier one found."""
        if is_finished(job):
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
            stage: await self._jobs.with_events(key, self._jobs.find(key, stage, _job_name(job, stage)))
            for stage in JOB_STAGES
            if stage.value not in done
        }
        planning = Facts() if Stage.PLAN.value in done else await self._planning(job)
        return JobFacts(self._context.now(), stages, self._context.polls.progress(key), trouble, planning)

    async def _planning(self, job: FineTuneJob) -> Facts:
        """The machine's side of the plan; nodes are read for an accelerator only."""
        return Facts(
            memory_limit=train_memory_limit(job.spec),
            cores=train_cores(job.spec),
            groups=await self._nodes.groups() if job.spec.resources.accelerators else None,
            settings=self._context.settings.plan,
        )

    async def _act(self, job: FineTuneJob, decision: Decision) -> Verdict | None:
        settings, version = self._context.settings, self._context.version
        planned = job.model_copy(update={"status": decision.status})  # the plan may be of this very look

        def build(stage: Stage, settings: Settings) -> Obj:
            require_allowed(job.spec, settings.secrets.allowed_names)
            use = self._uses.of(job.metadata.namespace) if stage is Stage.FETCH else None
            return build_stage(stage, planned, fetch_result(decision.status), settings, version, use)

        try:
            if CreateStage(Stage.TRAIN) in decision.actions:
                for manifest in build_peers(job, settings):
                    await self._applier.ensure(manifest)
        except REFUSALS as error:
            return verdict_of(error)
        return await self._jobs.act(job.metadata.namespace, decision.actions, build)

    def _poll(self, key: Key, job: FineTuneJob, *, finished: bool) -> None:
        """Ask the running train pod that leads for its progress, and nobody once it has ended."""
        facts = self._jobs.find(key, Stage.TRAIN, _job_name(job, Stage.TRAIN))
        running = [pod for pod in facts.pods if leads(pod) and pod.get("status", {}).get("phase") == "Running"]
        ip = running[-1]["status"].get("podIP") if running and not finished else None
        self._context.polls.watch_training(key, ip)

    async def _tell(self, obj: Obj, job: FineTuneJob, decision: Decision) -> None:
        notes = stage_notes(job.status.stages, decision.status.stages)
        notes += training_notes(job.status.notices, decision.status.notices)
        notes += condition_notes(job.status.conditions, decision.status.conditions)
        for note in notes:
            await self._context.events.tell(obj, note.reason, note.message, warning=note.warning)


def _job_name(job: FineTuneJob, stage: Stage) -> str:
    """The Job of a stage that counts: of training, the last one that was made."""
    if stage is Stage.TRAIN:
        return attempts.train_job(job.metadata.name, attempts.retries_used(job.status))
    return stage_job(job.metadata.name, stage)
