"""Brings adapters made elsewhere into the store: a fetch Job each, made, judged, made again, and removed when its
result is in the status. Never loads one into a server.
"""

from collections.abc import Mapping
from dataclasses import replace

from tuneloop_core.api.modeldeployment import AdapterSpec, ModelDeployment
from tuneloop_core.api.modeldeployment_status import AdapterStatus
from tuneloop_core.settings import Settings
from tuneloop_core.stages import Stage
from tuneloop_operator import names
from tuneloop_operator.build.adapterfetch import build_adapter_fetch
from tuneloop_operator.kube.resources import JOBS, Obj
from tuneloop_operator.names import Key
from tuneloop_operator.policy.actions import DeleteJob
from tuneloop_operator.policy.adapterfetch import Fetched, is_known, job_tag, judge_fetch
from tuneloop_operator.policy.adapters import source_of
from tuneloop_operator.policy.conditions import parse_time
from tuneloop_operator.policy.modelfetch import ATTEMPT_ANNOTATION, attempt
from tuneloop_operator.policy.secrets import require_allowed
from tuneloop_operator.reconcile.context import Context
from tuneloop_operator.reconcile.jobs import StageJobs

MAX_STEPS = 4
TIDY_SECONDS = 1.0
TIDY_WITHIN_SECONDS = 10.0  # of its end


class AdapterFetcher:
    """Fetch Jobs of adapters of all ModelDeployments of this process."""

    def __init__(self, context: Context, jobs: StageJobs) -> None:
        self._context, self._jobs = context, jobs
        self._tries: dict[str, int] = {}  # by Job name and owner UID: the try after a Job that was just deleted

    async def settle(self, key: Key, deployment: ModelDeployment) -> dict[str, Fetched]:
        """By adapter name, those that are not yet in the status. Jobs that nobody waits for any more are removed."""
        before = {status.name: status for status in deployment.status.adapters}
        wanted = {
            names.adapter_job(key.name, job_tag(spec)): spec
            for spec in deployment.spec.adapters
            if not is_known(spec, before.get(spec.name), source_of(spec.source))
        }
        await self._remove(key, deployment, wanted)
        return {spec.name: await self._settle(key, deployment, spec, before.get(spec.name)) for spec in wanted.values()}

    async def _settle(
        self, key: Key, deployment: ModelDeployment, spec: AdapterSpec, before: AdapterStatus | None
    ) -> Fetched:
        """Judge and act until nothing is left to do; what the API server refused is told as this adapter's trouble."""
        found = await self._judge(key, deployment, spec, before)
        for _ in range(MAX_STEPS):
            if not found.verdict.actions:
                break
            self._count_try(key, deployment, spec, found)
            trouble = await self._jobs.act(
                key.namespace, found.verdict.actions, lambda _stage, settings: self._job(deployment, spec, settings)
            )
            if trouble is not None:
                return Fetched(trouble)
            found = await self._judge(key, deployment, spec, before)
        wait = self._tidy(key, spec) if found.found is not None else found.verdict.look_again
        return replace(found, verdict=replace(found.verdict, actions=(), look_again=wait))

    def _tidy(self, key: Key, spec: AdapterSpec) -> float | None:
        """Our own status write wakes nobody: the finished Job is removed by a look soon after it.

        Not one whose version is held back: its result is not in the status, and the Job stays.
        """
        job = self._jobs.find(key, Stage.FETCH, names.adapter_job(key.name, job_tag(spec))).job
        ended = ((job or {}).get("status") or {}).get("completionTime")
        fresh = ended and (self._context.now() - parse_time(ended)).total_seconds() < TIDY_WITHIN_SECONDS
        return TIDY_SECONDS if fresh else None

    async def _judge(
        self, key: Key, deployment: ModelDeployment, spec: AdapterSpec, before: AdapterStatus | None
    ) -> Fetched:
        facts = self._jobs.find(key, Stage.FETCH, names.adapter_job(key.name, job_tag(spec)))
        facts = await self._jobs.with_events(key, facts)
        return judge_fetch(facts, before, deployment.metadata.uid, self._context.now())

    def _count_try(self, key: Key, deployment: ModelDeployment, spec: AdapterSpec, found: Fetched) -> None:
        job = self._jobs.find(key, Stage.FETCH, names.adapter_job(key.name, job_tag(spec))).job
        if job is not None and any(isinstance(action, DeleteJob) for action in found.verdict.actions):
            self._tries[job["metadata"]["name"] + deployment.metadata.uid] = attempt(job) + 1

    def _job(self, deployment: ModelDeployment, spec: AdapterSpec, settings: Settings) -> Obj:
        require_allowed(spec, settings.secrets.allowed_names)
        manifest = build_adapter_fetch(deployment, spec, job_tag(spec), settings)
        metadata = manifest["metadata"]
        tries = self._tries.pop(metadata["name"] + deployment.metadata.uid, 1)
        return manifest | {"metadata": metadata | {"annotations": {ATTEMPT_ANNOTATION: str(tries)}}}

    async def _remove(self, key: Key, deployment: ModelDeployment, wanted: Mapping[str, AdapterSpec]) -> None:
        prefix = names.adapter_job(key.name, "")
        for job in self._context.cache.children(key, JOBS.kind):
            metadata = job["metadata"]
            ours = deployment.metadata.uid in names.owner_uids(job)
            if ours and metadata["name"].startswith(prefix) and metadata["name"] not in wanted:
                delete = DeleteJob(Stage.FETCH, metadata["name"], metadata["uid"])
                await self._jobs.act(key.namespace, (delete,), lambda _stage, _settings: {})
