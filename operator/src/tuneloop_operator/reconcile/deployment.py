"""Reconcile of one ModelDeployment: the model in the store, the adapters' versions, the servers, then the status once.

Deployments are made once and later only scaled or removed, so that an upgraded operator restarts no model; Service,
budget and ConfigMap are applied. Adapters never touch a Deployment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from tuneloop_core.api.finetunejob import FineTuneJob
from tuneloop_core.api.modeldeployment import ModelDeployment
from tuneloop_core.constants import LABEL_REVISION
from tuneloop_core.serving import AdapterList
from tuneloop_operator.build.server import selector_labels
from tuneloop_operator.kube.resources import Obj
from tuneloop_operator.names import Key
from tuneloop_operator.policy import adapters, owners, revisions, succession
from tuneloop_operator.policy.adapterfetch import Fetched
from tuneloop_operator.policy.adapters import Resolved, Sources
from tuneloop_operator.policy.autoscale import Decision
from tuneloop_operator.policy.candidates import Need
from tuneloop_operator.policy.conditions import parse_time
from tuneloop_operator.policy.course import Course
from tuneloop_operator.policy.course import notes as rollout_notes
from tuneloop_operator.policy.modelfetch import ModelVerdict
from tuneloop_operator.policy.published import judge_published, judge_unreadable
from tuneloop_operator.policy.scalingstatus import scaling_notes
from tuneloop_operator.policy.serving import ServingFacts, ready_addresses, ready_beside, summarize
from tuneloop_operator.policy.transitions import condition_notes
from tuneloop_operator.policy.unreadable import words_of
from tuneloop_operator.policy.verdicts import State, Verdict, is_unscheduled
from tuneloop_operator.reconcile import rollouts
from tuneloop_operator.reconcile.adapterfetch import AdapterFetcher
from tuneloop_operator.reconcile.adapterjobs import ReadJobs
from tuneloop_operator.reconcile.claims import Claims
from tuneloop_operator.reconcile.context import Context
from tuneloop_operator.reconcile.jobs import StageJobs
from tuneloop_operator.reconcile.ledger import Starts
from tuneloop_operator.reconcile.modelfetch import ModelFetcher
from tuneloop_operator.reconcile.rollouts import Rollouts
from tuneloop_operator.reconcile.room import make_room
from tuneloop_operator.reconcile.scaling import Wish
from tuneloop_operator.reconcile.servers import Servers, Wanted, pods_of
from tuneloop_operator.reconcile.status import write_status
from tuneloop_operator.reconcile.troubles import REFUSALS, verdict_of
from tuneloop_operator.reconcile.unreadable import tell_unreadable

START_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Look:
    """What one reconcile found on its way."""

    model: ModelVerdict
    course: Course
    trouble: Verdict | None
    decision: Decision
    fetches: Sequence[Verdict] = ()
    name_taken: str = ""
    room: float | None = None  # seconds until the next look at pods that leave

    @property
    def look_again(self) -> float | None:
        """The shortest wait that any part asked for."""
        parts = (self.model.verdict, self.trouble, *self.fetches, self.course)
        waits = (self.room, *(part.look_again for part in parts if part))
        return min((wait for wait in waits if wait), default=None)


class DeploymentReconciler:
    """All ModelDeployments of this process."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._jobs = StageJobs(context)
        self._fetcher = ModelFetcher(context, self._jobs)
        self._adapter_fetcher = AdapterFetcher(context, self._jobs)
        self._servers = Servers(context)
        self._rollouts = Rollouts(context)
        self._read_jobs = ReadJobs(context.cache)
        self._claims = Claims(context.cache)
        self._starts = Starts()

    def dependents(self, obj: Obj) -> tuple[Key, ...]:
        """Keys of the ModelDeployments that serve what this FineTuneJob publishes, or claim a name of this one."""
        return (*self._read_jobs.dependents(obj), *self._claims.dependents(obj))

    def forget(self, key: Key) -> None:
        """The resource is gone."""
        self._servers.forget(key)
        self._read_jobs.forget(key)
        self._claims.forget(key)
        self._starts.forget(key)
        self._context.scaler.forget(key)
        self._context.gateways.forget(key)

    async def reconcile(self, key: Key, obj: Obj) -> float | None:
        """One look; returns after how many seconds to look again."""
        try:
            deployment = ModelDeployment.model_validate(obj)
        except ValidationError as error:
            return await tell_unreadable(self._context, obj, error)
        found = self._servers.deployments(key, deployment)
        look = await self._act(key, deployment, found, self._claims.taken(key, obj))
        status = summarize(deployment, await self._facts(key, deployment, look))
        written = await write_status(self._context.client, obj, status.to_dict())
        if written is not None:
            self._context.cache.put(written)
            self._starts.note(key, deployment.status.cold_start, status.cold_start)
            notes = condition_notes(deployment.status.conditions, status.conditions)
            notes += rollout_notes(deployment.status.rollout, status.rollout)
            for note in (*notes, *scaling_notes(deployment.status.scaling, status.scaling)):
                await self._context.events.tell(obj, note.reason, note.message, warning=note.warning)
        return look.look_again or self._context.settings.resync_seconds

    async def _act(
        self, key: Key, deployment: ModelDeployment, found: Mapping[int, Obj], taken: Mapping[str, str]
    ) -> Look:
        model, trouble = await self._model(key, deployment, found)
        fetched = await self._adapter_fetcher.settle(key, deployment)
        resolved = owners.without(self._resolve(key, deployment, model, fetched), taken, deployment)
        ready = model.model if model.verdict.state is State.DONE else None
        chosen = self._servers.choose(deployment, ready, found)
        decision = self._replicas(key, deployment, succession.serving_only(deployment.status.rollout, found))
        base = ready.uri if ready else ""
        course = self._rollouts.plan(key, rollouts.Look(deployment, resolved, found, chosen, decision.replicas, base))
        wanted, room = Wanted(deployment, ready, course, decision.replicas), None
        try:
            await self._servers.ensure(key, wanted)
            room = await make_room(self._context, key, deployment, self._servers.deployments(key, deployment))
        except REFUSALS as error:
            trouble = trouble or verdict_of(error)
        name_taken = owners.base_words(deployment, taken)
        return Look(model, course, trouble, decision, [item.verdict for item in fetched.values()], name_taken, room)

    def _replicas(self, key: Key, deployment: ModelDeployment, found: Mapping[int, Obj]) -> Decision:
        spec, current = deployment.spec, revisions.current_replicas(found, deployment.spec.scaling)
        fresh = not found or revisions.never_answered(found[max(found)])
        return self._context.scaler.wanted(key, Wish(spec.scaling, spec.slo, current, fresh))

    async def _model(
        self, key: Key, deployment: ModelDeployment, found: Mapping[int, Obj]
    ) -> tuple[ModelVerdict, Verdict | None]:
        """The base model: fetched, or published by a job; the second is what the API server refused."""
        name, served = deployment.spec.model.fine_tune_job, [found[number] for number in sorted(found, reverse=True)]
        if name:
            return self._published(deployment, self._read_jobs.get(key, name), served), None
        return await self._fetcher.settle(key, deployment, served)

    def _published(self, deployment: ModelDeployment, job: Obj | None, served: Sequence[Obj]) -> ModelVerdict:
        try:
            return judge_published(deployment, FineTuneJob.model_validate(job) if job else None, served)
        except ValidationError as error:
            return judge_unreadable(deployment, *words_of(error), served)

    def _resolve(
        self, key: Key, deployment: ModelDeployment, model: ModelVerdict, fetched: Mapping[str, Fetched]
    ) -> list[Resolved]:
        need = Need(model.model.uri if model.model else "", deployment.spec.engine.lora.max_rank)
        sources = Sources(self._read_jobs.reader(key), fetched)
        return adapters.resolve(deployment.spec.adapters, deployment.status.adapters, sources, need)

    async def _facts(self, key: Key, deployment: ModelDeployment, look: Look) -> ServingFacts:
        context, labels = self._context, selector_labels(key.name)
        found = self._servers.deployments(key, deployment)
        pods = pods_of(context.cache, key)
        context.polls.watch_servers(key, _lists(pods, found, look.course))
        serving = look.course.serving
        context.scaler.ready(key, ready_addresses(pods), ready_beside(pods, serving), serving)
        slow = [pod for pod in pods if self._is_slow(pod)]
        access = deployment.spec.access
        return ServingFacts(
            now=context.now(),
            model=look.model.verdict,
            model_status=look.model.model,
            resolved=look.course.serve,
            course=look.course,
            revisions=revisions.known(deployment.status.revisions, found),
            judged=found.get(look.course.judged(found) or 0),
            pods=pods,
            events=await self._jobs.events(key.namespace, slow) if slow else (),
            servers=context.polls.statuses(key),
            latency=context.gateways.latency(key),
            trouble=look.trouble,
            closed=not (access and access.keys) and not context.settings.gateway.allow_without_keys,
            name_taken=look.name_taken,
            replicas=look.decision.replicas,
            replicas_reason=look.decision.reason,
            url=f"{context.settings.gateway.url.rstrip('/')}/{key.namespace}/v1",
            selector=",".join(f"{name}={value}" for name, value in sorted(labels.items())),
        )

    def _is_slow(self, pod: Obj) -> bool:
        """Whether a pod has not started for so long that its Events are worth a read; without a node it says why."""
        if pod.get("status", {}).get("phase") != "Pending" or is_unscheduled(pod):
            return False
        age = (self._context.now() - parse_time(pod["metadata"]["creationTimestamp"])).total_seconds()
        return age >= START_PATIENCE_SECONDS


def _lists(pods: Sequence[Obj], found: Mapping[int, Obj], course: Course) -> dict[str, AdapterList | None]:
    """What each server should have, by address; pods of a revision that has gone keep what they have."""
    staying = {f"r{number}" for number in found}
    polled = {pod["status"]["podIP"]: pod["metadata"]["labels"].get(LABEL_REVISION) for pod in pods if is_polled(pod)}
    return {ip: course.adapters_of(label) if label in staying else None for ip, label in polled.items()}


def is_polled(pod: Obj) -> bool:
    """Whether a server pod can be asked: it runs, has an address and is not on its way out."""
    status = pod.get("status", {})
    leaving = pod["metadata"].get("deletionTimestamp")
    return status.get("phase") == "Running" and bool(status.get("podIP")) and not leaving
