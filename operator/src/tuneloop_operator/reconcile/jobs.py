"""What both reconcilers do with stage Jobs: find them with their pods and Events, act on decisions. Never decides."""

from collections.abc import Callable, Iterable

from tuneloop_core.constants import LABEL_STAGE
from tuneloop_core.settings import Settings
from tuneloop_core.stages import Stage
from tuneloop_operator.kube.resources import EVENTS, JOBS, PODS, Obj
from tuneloop_operator.names import Key, owner_uids
from tuneloop_operator.policy.actions import Action, CreateStage, DeleteJob, PatchJob
from tuneloop_operator.policy.verdicts import StageFacts, Verdict, needs_events
from tuneloop_operator.reconcile.context import Context
from tuneloop_operator.reconcile.troubles import REFUSALS, verdict_of

Build = Callable[[Stage, Settings], Obj]
"""The Job of a stage; the settings are those of this process with the addresses of the cluster refused."""


class StageJobs:
    """Jobs of stages, of either kind."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def find(self, key: Key, stage: Stage, name: str) -> StageFacts:
        """The Job and the pods it owns, from the cache."""
        job = self._context.cache.get(JOBS.kind, key.namespace, name)
        if job is None:
            return StageFacts()
        pods = [
            pod
            for pod in self._context.cache.children(key, PODS.kind)
            if pod["metadata"]["labels"].get(LABEL_STAGE) == stage.value and job["metadata"]["uid"] in owner_uids(pod)
        ]
        return StageFacts(job, tuple(pods))

    async def with_events(self, key: Key, facts: StageFacts) -> StageFacts:
        """The same with Events, where a pod is missing or does not start."""
        if not needs_events(facts, self._context.now()):
            return facts
        objects = [obj for obj in (facts.job, *facts.pods) if obj is not None]
        return StageFacts(facts.job, facts.pods, tuple(await self.events(key.namespace, objects)))

    async def events(self, namespace: str, objects: Iterable[Obj]) -> list[Obj]:
        """Events about these objects, newest first."""
        found: list[Obj] = []
        for obj in objects:
            fields = f"involvedObject.uid={obj['metadata']['uid']}"
            found += await self._context.client.list(EVENTS, namespace, fields=fields, limit=50)
        return sorted(found, key=lambda event: str(event.get("lastTimestamp") or ""), reverse=True)

    async def act(self, namespace: str, actions: Iterable[Action], build: Build) -> Verdict | None:
        """Do what a decision asks for; a refusal becomes a verdict that the status tells."""
        try:
            for action in actions:
                await self._do(namespace, action, build)
        except REFUSALS as error:
            return verdict_of(error)
        return None

    async def _do(self, namespace: str, action: Action, build: Build) -> None:
        client, cache = self._context.client, self._context.cache
        match action:
            case CreateStage(stage):
                await self._context.namespaces.ensure(namespace)
                cache.put(await client.create_owned(JOBS, build(stage, await self._context.addresses.refusing())))
            case PatchJob(_, name, spec, labels):
                body = ({"spec": spec} if spec else {}) | ({"metadata": {"labels": labels}} if labels else {})
                cache.put(await client.patch(JOBS, namespace, name, body))
            case DeleteJob(_, name, uid, foreground):
                await client.delete(JOBS, namespace, name, uid, foreground=foreground)
                if foreground:
                    return  # it stays until its pods have ended; the watch tells when
                found = cache.get(JOBS.kind, namespace, name)
                if found is not None and found["metadata"]["uid"] == uid:
                    cache.remove(found)
