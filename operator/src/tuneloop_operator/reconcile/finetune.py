"""Reconcile of one FineTuneJob: gather, decide, act until nothing is left to do, write the status once.

Jobs are only ever created, suspended, given another retry limit or deleted; never applied.
"""

from tuneloop_core.api.finetunejob import FineTuneJob
from tuneloop_core.constants import LABEL_STAGE
from tuneloop_core.stages import Stage
from tuneloop_operator.build.stages import build_stage
from tuneloop_operator.kube.resources import EVENTS, JOBS, PODS, Obj
from tuneloop_operator.names import JOB_STAGES, Key, stage_job
from tuneloop_operator.policy.actions import Action, CreateStage, DeleteJob, Note, PatchJob
from tuneloop_operator.policy.finetune import Decision, JobFacts, decide, is_finished
from tuneloop_operator.policy.results import fetch_result
from tuneloop_operator.policy.transitions import condition_notes, stage_notes
from tuneloop_operator.policy.verdicts import StageFacts, Verdict, needs_events
from tuneloop_operator.reconcile.context import Context
from tuneloop_operator.reconcile.status import write_status
from tuneloop_operator.reconcile.troubles import REFUSALS, verdict_of

MAX_STEPS = 8
"""Decisions in one reconcile: each stage takes one at most."""


class FineTuneReconciler:
    """All FineTuneJobs of this process."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def reconcile(self, key: Key, obj: Obj) -> float | None:
        """One look; returns after how many seconds to look again, None when an event will tell."""
        job = FineTuneJob.model_validate(obj)
        decision = await self._settle(key, job)
        self._poll(key, job, decision)
        written = await write_status(self._context.client, obj, decision.status.to_dict())
        if written is not None:
            self._context.cache.put(written)
            await self._tell(obj, job, decision)
        return None if is_finished(decision.status) else decision.look_again

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
        now = self._context.now()
        done = {stage.name for stage in job.status.stages if stage.state == "Succeeded"}
        stages = {stage: self._stage_facts(key, stage) for stage in JOB_STAGES if stage.value not in done}
        for stage, facts in stages.items():
            if needs_events(facts, now):
                stages[stage] = StageFacts(facts.job, facts.pods, tuple(await self._events(key.namespace, facts)))
        return JobFacts(now, stages, self._context.polls.progress(key), trouble)

    def _stage_facts(self, key: Key, stage: Stage) -> StageFacts:
        job = self._context.cache.get(JOBS.kind, key.namespace, stage_job(key.name, stage))
        if job is None:
            return StageFacts()
        pods = [
            pod
            for pod in self._context.cache.children(key, PODS.kind)
            if pod["metadata"]["labels"].get(LABEL_STAGE) == stage.value and is_owned(pod, job)
        ]
        return StageFacts(job, tuple(pods))

    async def _events(self, namespace: str, facts: StageFacts) -> list[Obj]:
        """Events of the Job (quota refusals) and of its pods (mounts), newest first."""
        found: list[Obj] = []
        for obj in (facts.job, *facts.pods):
            if obj is not None:
                fields = f"involvedObject.uid={obj['metadata']['uid']}"
                found += await self._context.client.list(EVENTS, namespace, fields=fields, limit=50)
        return sorted(found, key=lambda event: str(event.get("lastTimestamp") or ""), reverse=True)

    async def _act(self, job: FineTuneJob, decision: Decision) -> Verdict | None:
        """Do what the decision asks for; a refusal becomes a verdict that the status tells."""
        try:
            for action in decision.actions:
                await self._do(job, action, decision)
        except REFUSALS as error:
            return verdict_of(error)
        return None

    async def _do(self, job: FineTuneJob, action: Action, decision: Decision) -> None:
        context, namespace = self._context, job.metadata.namespace
        match action:
            case CreateStage(stage):
                await context.namespaces.ensure(namespace)
                fetched = fetch_result(decision.status)
                manifest = build_stage(stage, job, fetched, context.settings, context.version)
                context.cache.put(await context.client.create_owned(JOBS, manifest))
            case PatchJob(_, name, spec):
                context.cache.put(await context.client.patch(JOBS, namespace, name, {"spec": spec}))
            case DeleteJob(_, name, uid):
                await context.client.delete(JOBS, namespace, name, uid)
                found = context.cache.get(JOBS.kind, namespace, name)
                if found is not None and found["metadata"]["uid"] == uid:
                    context.cache.remove(found)

    def _poll(self, key: Key, job: FineTuneJob, decision: Decision) -> None:
        """Ask the running train pod for its progress, and nobody once it has ended."""
        facts = self._stage_facts(key, Stage.TRAIN)
        running = [pod for pod in facts.pods if pod.get("status", {}).get("phase") == "Running"]
        ip = running[-1]["status"].get("podIP") if running and not is_finished(decision.status) else None
        self._context.polls.watch_training(key, ip)

    async def _tell(self, obj: Obj, job: FineTuneJob, decision: Decision) -> None:
        notes: list[Note] = stage_notes(job.status.stages, decision.status.stages)
        notes += condition_notes(job.status.conditions, decision.status.conditions)
        for note in notes:
            await self._context.events.tell(obj, note.reason, note.message, warning=note.warning)


def is_owned(child: Obj, owner: Obj) -> bool:
    """Whether the child's owner references name this very object."""
    return any(ref["uid"] == owner["metadata"]["uid"] for ref in child["metadata"].get("ownerReferences", []))
