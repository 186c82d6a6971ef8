"""The children that serve: Service, budget, ConfigMap, a Deployment per revision.

Applied, made, scaled, removed; never judged.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tuneloop_core.api.finetunejob_status import ModelStatus
from tuneloop_core.api.modeldeployment import ModelDeployment
from tuneloop_core.constants import LABEL_REVISION
from tuneloop_operator import names
from tuneloop_operator.build import serving as build
from tuneloop_operator.build.server import Revision, build_deployment, config_key, selector_labels
from tuneloop_operator.kube.resources import CONFIGMAPS, DEPLOYMENTS, PODS, Obj
from tuneloop_operator.names import Key
from tuneloop_operator.policy import revisions
from tuneloop_operator.policy.course import Course
from tuneloop_operator.policy.drift import is_applied
from tuneloop_operator.policy.revisions import (
    BASE_ANNOTATION,
    FINGERPRINT_ANNOTATION,
    MAX_RANK_ANNOTATION,
    SOURCE_ANNOTATION,
    Chosen,
    annotation,
)
from tuneloop_operator.reconcile.apply import Applier
from tuneloop_operator.reconcile.cache import Cache
from tuneloop_operator.reconcile.context import Context
from tuneloop_operator.reconcile.namespaces import with_digest


@dataclass(frozen=True)
class Wanted:
    """What should be served; ``model`` is None while its fetch is on the way."""

    deployment: ModelDeployment
    model: ModelStatus | None
    course: Course
    replicas: int

    @property
    def chosen(self) -> Chosen | None:
        """The revision that the spec wants."""
        return self.course.chosen

    @property
    def sizes(self) -> Mapping[int, int] | None:
        """Pods by revision while one succeeds another; the others go."""
        return self.course.sizes


class Servers:
    """Serving children of all ModelDeployments of this process."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._applier = Applier(context)

    def forget(self, key: Key) -> None:
        """The resource is gone."""
        self._applier.forget(key)

    def deployments(self, key: Key, deployment: ModelDeployment) -> dict[int, Obj]:
        """The Deployments there are, by revision number."""
        return revisions.by_number(self._context.cache.children(key, DEPLOYMENTS.kind), deployment.metadata.uid)

    async def ensure(self, key: Key, wanted: Wanted) -> None:
        """Bring the children to what is wanted, as far as the model allows. ForeignOwnerError, ApiError."""
        deployment, found = wanted.deployment, self.deployments(key, wanted.deployment)
        chosen = wanted.chosen
        if chosen is None:
            return
        await self._context.namespaces.ensure(key.namespace)
        await self._applier.ensure(build.build_service(deployment))
        await self._applier.ensure(build.build_budget(deployment))
        await self._config_map(key, wanted, found, chosen)
        replicas = wanted.replicas
        leaving = gone(deployment, found, chosen, replicas, wanted.sizes)
        for number in leaving:
            await self._remove(found[number])
        kept = [number for number in found if number not in leaving]
        for number, size in (wanted.sizes or revisions.sizes(chosen, kept, replicas)).items():
            if number in found:
                await self._scale(found[number], size)
                await self._adopt(found[number], chosen)
            elif number == chosen.number:
                await self._create(wanted, chosen, size)

    def choose(self, deployment: ModelDeployment, model: ModelStatus | None, found: Mapping[int, Obj]) -> Chosen | None:
        """The revision that is wanted; while another model is being fetched (None), what serves."""
        known = revisions.known(deployment.status.revisions, found)
        if model is not None:
            return revisions.choose(deployment, known, found, model.path, self._context.settings.images.server)
        return revisions.meanwhile(deployment.status.rollout, known, found)

    async def _config_map(self, key: Key, wanted: Wanted, found: Mapping[int, Obj], chosen: Chosen) -> None:
        issuer, jwks = await self._context.issuer.value()
        there = self._context.cache.get(CONFIGMAPS.kind, key.namespace, names.server(key.name))
        data = dict((there or {}).get("data") or {})
        labels = sorted({f"r{number}" for number in found} | {f"r{chosen.number}"})
        servers = {label: data[config_key(label)] for label in labels if config_key(label) in data}
        servers.setdefault(f"r{chosen.number}", build.server_config(wanted.deployment))
        keys, lists = build.Keys(issuer, jwks), {label: wanted.course.adapters_of(label) for label in ("", *labels)}
        manifest = with_digest(build.build_config_map(wanted.deployment, servers, lists, keys, self._context.settings))
        if is_applied(manifest, there) and data == manifest["data"]:
            return
        written = await self._applier.replace(manifest)
        self._context.cache.put(written)

    async def _scale(self, found: Obj, replicas: int) -> None:
        if found["spec"].get("replicas") != replicas:
            client, metadata = self._context.client, found["metadata"]
            body = {"spec": {"replicas": replicas}}
            self._context.cache.put(await client.patch(DEPLOYMENTS, metadata["namespace"], metadata["name"], body))

    async def _adopt(self, found: Obj, chosen: Chosen) -> None:
        """Write today's fingerprint where an earlier operator wrote another of the same spec: no pod notices."""
        metadata, recorded = found["metadata"], annotation(found, FINGERPRINT_ANNOTATION)
        if metadata["labels"][LABEL_REVISION] != f"r{chosen.number}" or recorded == chosen.fingerprint:
            return
        body = {"metadata": {"annotations": {FINGERPRINT_ANNOTATION: chosen.fingerprint}}}
        patched = await self._context.client.patch(DEPLOYMENTS, metadata["namespace"], metadata["name"], body)
        self._context.cache.put(patched)

    async def _create(self, wanted: Wanted, chosen: Chosen, size: int) -> None:
        assert wanted.model is not None, "a revision is only new when its model is in the store"
        source = revisions.source_of(wanted.deployment)
        revision = Revision(chosen.number, chosen.image, wanted.model.path, size)
        annotations = {SOURCE_ANNOTATION: source, FINGERPRINT_ANNOTATION: chosen.fingerprint}
        annotations[BASE_ANNOTATION] = wanted.model.uri
        annotations[MAX_RANK_ANNOTATION] = str(wanted.deployment.spec.engine.lora.max_rank)
        manifest = build_deployment(wanted.deployment, revision, self._context.settings, annotations)
        self._context.cache.put(await self._context.client.create_owned(DEPLOYMENTS, manifest))

    async def _remove(self, found: Obj) -> None:
        metadata = found["metadata"]
        await self._context.client.delete(DEPLOYMENTS, metadata["namespace"], metadata["name"], metadata["uid"])
        self._context.cache.remove(found)


def pods_of(cache: Cache, key: Key) -> list[Obj]:
    """The server pods of a ModelDeployment, of all revisions, oldest first."""
    labels = selector_labels(key.name).items()
    return [pod for pod in cache.children(key, PODS.kind) if pod["metadata"]["labels"].items() >= labels]


def gone(
    deployment: ModelDeployment,
    found: Mapping[int, Obj],
    chosen: Chosen,
    replicas: int,
    sizes: Mapping[int, int] | None,
) -> list[int]:
    """Revisions that may go now; under Recreate the old ones go before the new one comes."""
    if sizes is not None:
        return sorted(number for number in found if number not in sizes)
    asked = deployment.spec.rollout
    if asked is not None and asked.strategy == "Recreate":
        return sorted(number for number in found if number != chosen.number)
    return revisions.obsolete(found, chosen, replicas)
