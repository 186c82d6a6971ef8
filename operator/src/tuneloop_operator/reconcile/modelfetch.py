"""Brings a ModelDeployment's base model into the store: the fetch Job, made, judged, made again. Never serves."""

from collections.abc import Sequence

from tuneloop_core.api.modeldeployment import ModelDeployment
from tuneloop_core.settings import Settings
from tuneloop_core.stages import Stage
from tuneloop_operator import names
from tuneloop_operator.build.stages import build_model_fetch
from tuneloop_operator.kube.resources import Obj
from tuneloop_operator.names import Key
from tuneloop_operator.policy import modelfetch
from tuneloop_operator.policy.actions import Action, DeleteJob
from tuneloop_operator.policy.modelfetch import ModelFacts, ModelVerdict, judge_model
from tuneloop_operator.policy.revisions import SOURCE_ANNOTATION, annotation, source_of
from tuneloop_operator.policy.secrets import require_allowed
from tuneloop_operator.policy.verdicts import StageFacts, Verdict
from tuneloop_operator.reconcile.context import Context
from tuneloop_operator.reconcile.jobs import StageJobs
from tuneloop_operator.reconcile.storeuse import StoreUses

MAX_STEPS = 4


class ModelFetcher:
    """Fetch Jobs of all ModelDeployments of this process."""

    def __init__(self, context: Context, jobs: StageJobs) -> None:
        self._context, self._jobs = context, jobs
        self._uses = StoreUses(context)
        self._tries: dict[str, int] = {}  # by owner UID: the try after a Job that was just deleted

    async def settle(
        self, key: Key, deployment: ModelDeployment, served: Sequence[Obj]
    ) -> tuple[ModelVerdict, Verdict | None]:
        """Judge and act until nothing is left to do; ``served`` are the revisions' Deployments, newest first.

        The second is what the API server refused, if it did.
        """
        found = judge_model(deployment, await self._facts(key, served))
        for _ in range(MAX_STEPS):
            if not found.verdict.actions:
                break
            trouble = await self._act(key, deployment, found.verdict.actions)
            if trouble is not None:
                return found, trouble
            found = judge_model(deployment, await self._facts(key, served))
        return found, None

    async def _facts(self, key: Key, served: Sequence[Obj]) -> ModelFacts:
        fetch = await self._jobs.with_events(key, self._find(key))
        return ModelFacts(self._context.now(), fetch, served)

    def _find(self, key: Key) -> StageFacts:
        return self._jobs.find(key, Stage.FETCH, names.model_job(key.name))

    async def _act(self, key: Key, deployment: ModelDeployment, actions: tuple[Action, ...]) -> Verdict | None:
        uid, job = deployment.metadata.uid, self._find(key).job
        if job is not None and any(isinstance(action, DeleteJob) for action in actions):
            same = annotation(job, SOURCE_ANNOTATION) == source_of(deployment)
            self._tries[uid] = modelfetch.attempt(job) + 1 if same else 1

        def build(_stage: Stage, settings: Settings) -> Obj:
            return self._job(deployment, self._tries.pop(uid, 1), settings)

        return await self._jobs.act(key.namespace, actions, build)

    def _job(self, deployment: ModelDeployment, attempt: int, settings: Settings) -> Obj:
        require_allowed(deployment.spec.model, settings.secrets.allowed_names)
        manifest = build_model_fetch(deployment, settings, self._uses.of(deployment.metadata.namespace))
        annotations = {SOURCE_ANNOTATION: source_of(deployment), modelfetch.ATTEMPT_ANNOTATION: str(attempt)}
        return manifest | {"metadata": manifest["metadata"] | {"annotations": annotations}}
