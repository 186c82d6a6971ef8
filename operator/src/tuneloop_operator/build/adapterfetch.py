"""The Job that fetches an adapter made elsewhere, for a ModelDeployment. Pure; built once and never applied again."""

from typing import Any

from tuneloop_core.api.modeldeployment import AdapterSpec, ModelDeployment
from tuneloop_core.constants import MODELDEPLOYMENT_KIND, STORE_ARTIFACTS
from tuneloop_core.settings import Settings
from tuneloop_core.stages import FetchInput, Stage
from tuneloop_operator import names
from tuneloop_operator.build import sources
from tuneloop_operator.build.jobs import JobParts, stage_job
from tuneloop_operator.build.meta import child_metadata
from tuneloop_operator.build.pods import store_mount
from tuneloop_operator.build.sizes import stage_sizes
from tuneloop_operator.build.stages import work_folder

Obj = dict[str, Any]


def build_adapter_fetch(deployment: ModelDeployment, spec: AdapterSpec, tag: str, settings: Settings) -> Obj:
    """The Job; ``tag`` tells it from the deployment's others. It writes artifacts and its own work folder only."""
    owner, source, hub = deployment.metadata, spec.source, settings.hub
    uri = source.uri or ""
    inputs = FetchInput(
        owner=f"{MODELDEPLOYMENT_KIND} {owner.namespace}/{owner.name}, adapter {spec.name}",
        adapter=source.to_dict(),
        pvc_adapter_path=sources.claim_path("adapter") if sources.claim_of(uri) else "",
        hub_endpoint=hub.endpoint,
        refused_addresses=hub.refused_addresses,
        max_bytes=hub.max_bytes,
    )
    parts = JobParts(
        inputs=inputs,
        mounts=[
            store_mount("/store/artifacts", STORE_ARTIFACTS, read_only=False),
            store_mount("/work", f"{work_folder(owner.uid)}/adapters/{tag}", read_only=False),
        ],
        volumes=sources.source_volumes("adapter", uri, source.credentials_secret),
        resources=stage_sizes(settings),
    )
    metadata = child_metadata(MODELDEPLOYMENT_KIND, owner, names.adapter_job(owner.name, tag), Stage.FETCH.value)
    return stage_job(metadata, Stage.FETCH, parts, settings)
