"""The Job of each stage of a FineTuneJob, and the fetch Job of a ModelDeployment.

Pure; a Job is built once and never applied again.
"""

from collections.abc import Callable
from typing import Any

from tuneloop_core.api.conditions import ObjectMeta
from tuneloop_core.api.finetunejob import FineTuneJob
from tuneloop_core.api.modeldeployment import ModelDeployment
from tuneloop_core.constants import (
    FINETUNEJOB_KIND,
    MODELDEPLOYMENT_KIND,
    PROGRESS_PORT,
    QUEUE_LABEL,
    QUEUE_PRIORITY_LABEL,
    STORE_ARTIFACTS,
    STORE_DATASETS,
    STORE_MODELS,
    STORE_TOKENS,
    STORE_WORK,
)
from tuneloop_core.settings import Settings
from tuneloop_core.stages import CheckInput, FetchInput, FetchResult, PublishInput, Stage, StoreUse, TrainInput
from tuneloop_operator import attempts, names
from tuneloop_operator.build import sources, tasks
from tuneloop_operator.build.deadline import train_deadline
from tuneloop_operator.build.grace import train_grace
from tuneloop_operator.build.jobs import JobParts, stage_job
from tuneloop_operator.build.meta import child_metadata
from tuneloop_operator.build.peers import rendezvous
from tuneloop_operator.build.pods import scratch, store_mount
from tuneloop_operator.build.sizes import stage_sizes, train_sizes

Obj = dict[str, Any]

SHARED_MEMORY = "1Gi"


def work_folder(uid: str) -> str:
    """The job's own folder of the store."""
    return f"{STORE_WORK}/{uid}"


def build_stage(  # noqa: PLR0913 - what a stage may need
    stage: Stage,
    job: FineTuneJob,
    fetched: FetchResult | None,
    settings: Settings,
    version: str,
    use: StoreUse | None = None,
) -> Obj:
    """The Job of ``stage``; every stage but fetch needs what fetch found. ``use`` lets fetch make room."""
    builders: dict[Stage, Callable[[], JobParts]] = {
        Stage.FETCH: lambda: _fetch(job, settings, use),
        Stage.CHECK: lambda: _check(job, _given(fetched), settings),
        Stage.TRAIN: lambda: _train(job, _given(fetched), settings),
        Stage.PUBLISH: lambda: _publish(job, _given(fetched), settings, version),
    }
    name = names.stage_job(job.metadata.name, stage)
    if stage is Stage.TRAIN:
        name = attempts.train_job(job.metadata.name, attempts.retries_used(job.status))
    metadata = child_metadata(FINETUNEJOB_KIND, job.metadata, name, stage.value)
    return stage_job(metadata, stage, builders[stage](), settings)


def build_model_fetch(deployment: ModelDeployment, settings: Settings, use: StoreUse | None = None) -> Obj:
    """The Job that brings a ModelDeployment's base model into the store."""
    model, owner = deployment.spec.model, deployment.metadata
    uri = model.uri or ""
    inputs = FetchInput(
        owner=_words(MODELDEPLOYMENT_KIND, owner),
        model={
            "uri": uri,
            "revision": model.revision,
            "endpoint": model.endpoint,
            "credentialsSecret": model.credentials_secret,
        },
        pvc_model_path=sources.claim_path("model") if sources.claim_of(uri) else "",
        store=use,
        **_hub(settings),
    )
    parts = JobParts(
        inputs=inputs,
        mounts=_fetch_mounts(owner.uid),
        volumes=sources.source_volumes("model", uri, model.credentials_secret),
        resources=stage_sizes(settings),
    )
    metadata = child_metadata(MODELDEPLOYMENT_KIND, owner, names.model_job(owner.name), Stage.FETCH.value)
    return stage_job(metadata, Stage.FETCH, parts, settings)


def _fetch(job: FineTuneJob, settings: Settings, use: StoreUse | None) -> JobParts:
    spec, owner, split = job.spec, job.metadata, job.spec.dataset.validation
    inputs = FetchInput(
        owner=_words(FINETUNEJOB_KIND, owner),
        model=spec.model.to_dict(),
        dataset=spec.dataset.to_dict(),
        tasks=[task.to_dict() for task in spec.evaluation.tasks],
        task_paths=tasks.claim_paths(spec.evaluation.tasks),
        pvc_model_path=sources.claim_path("model") if sources.claim_of(spec.model.uri) else "",
        pvc_dataset_path=sources.claim_path("dataset") if sources.claim_of(spec.dataset.uri) else "",
        pvc_validation_path=sources.claim_path("validation") if sources.claim_of(split.uri or "") else "",
        store=use,
        **_hub(settings),
    )
    model = sources.source_volumes("model", spec.model.uri, spec.model.credentials_secret)
    dataset = sources.source_volumes("dataset", spec.dataset.uri, spec.dataset.credentials_secret)
    held_out = sources.source_volumes("validation", split.uri, split.credentials_secret) if split.uri else []
    return JobParts(
        inputs=inputs,
        mounts=_fetch_mounts(owner.uid),
        volumes=model + dataset + held_out + tasks.volumes(spec.evaluation.tasks),
        resources=stage_sizes(settings),
        service_account=spec.dataset.service_account_name,
        pull_secrets=spec.pod.image_pull_secrets,
    )


def _check(job: FineTuneJob, fetched: FetchResult, settings: Settings) -> JobParts:
    spec, owner = job.spec, job.metadata
    inputs = CheckInput(
        owner=_words(FINETUNEJOB_KIND, owner),
        dataset=spec.dataset.to_dict(),
        dataset_digest=fetched.dataset_digest,
        method=spec.method.to_dict(),
        training=spec.training.to_dict(),
        evaluation=spec.evaluation.to_dict(),
    )
    mounts = [
        store_mount("/model", fetched.model_path, read_only=True),
        store_mount("/dataset", fetched.dataset_path, read_only=True),
        store_mount("/store/tokens", STORE_TOKENS, read_only=False),
        store_mount("/work", work_folder(owner.uid), read_only=False),
    ]
    resources = stage_sizes(settings)
    return JobParts(inputs=inputs, mounts=mounts, resources=resources, pull_secrets=spec.pod.image_pull_secrets)


def _train(job: FineTuneJob, fetched: FetchResult, settings: Settings) -> JobParts:
    spec, owner, nodes, plan = job.spec, job.metadata, job.spec.resources.nodes, job.status.plan
    k8s_job = attempts.train_job(owner.name, attempts.retries_used(job.status))
    deadline = train_deadline(spec, job.status)
    inputs = TrainInput(
        owner=_words(FINETUNEJOB_KIND, owner),
        method=spec.method.to_dict(),
        training=spec.training.to_dict(),
        checkpoint=spec.checkpoint.to_dict(),
        evaluation=spec.evaluation.to_dict(),
        accelerators=spec.resources.accelerators,
        simulated_accelerators=settings.simulated_accelerators,
        recompute=plan is not None and plan.recompute,
        shard=plan is not None and plan.shards > 1,
        pack_tokens=plan.pack_tokens if plan is not None and plan.shards > 1 else 0,
        deadline_seconds=deadline,
        nodes=nodes,
        rendezvous=rendezvous(job, k8s_job) if nodes > 1 else "",
    )
    mounts = [
        store_mount("/model", fetched.model_path, read_only=True),
        store_mount("/work", work_folder(owner.uid), read_only=False),
    ]
    return JobParts(
        inputs=inputs,
        mounts=mounts,
        volumes=[scratch("shm", "/dev/shm", SHARED_MEMORY, memory=True)],  # noqa: S108 - a mount, not a file
        resources=train_sizes(spec, plan.host_memory_bytes if plan else 0),
        pod=spec.pod,
        pull_secrets=spec.pod.image_pull_secrets,
        retries=attempts.backoff_limit(spec.retries, attempts.retries_used(job.status)),
        grace_seconds=train_grace(spec, job.status),
        deadline_seconds=deadline,
        port=PROGRESS_PORT,
        job_labels=_queue_labels(job),
        nodes=nodes,
        subdomain=names.train_peers(owner.name) if nodes > 1 else "",
    )


def _publish(job: FineTuneJob, fetched: FetchResult, settings: Settings, version: str) -> JobParts:
    spec, owner = job.spec, job.metadata
    inputs = PublishInput(
        owner=_words(FINETUNEJOB_KIND, owner),
        name=owner.name,
        namespace=owner.namespace,
        spec=spec.to_dict(),
        fetch=fetched,
        plan=job.status.plan.to_dict() if job.status.plan else {},
        usage=job.status.usage.to_dict() if job.status.usage else {},
        trainer_image=settings.images.trainer,
        operator_version=version,
        hub_endpoint=settings.hub.endpoint,
        refused_addresses=settings.hub.refused_addresses,
    )
    mounts = [
        store_mount("/model", fetched.model_path, read_only=True),
        store_mount("/work", work_folder(owner.uid), read_only=False),
        store_mount("/store/artifacts", STORE_ARTIFACTS, read_only=False),
    ]
    output = spec.output
    volumes = sources.source_volumes("output", output.uri, output.credentials_secret, read_only=False) if output else []
    return JobParts(
        inputs=inputs,
        mounts=mounts,
        volumes=volumes + sources.tracking_volumes(spec.tracking),
        resources=stage_sizes(settings),
        pull_secrets=spec.pod.image_pull_secrets,
    )


def _fetch_mounts(uid: str) -> list[Obj]:
    return [
        store_mount("/store/models", STORE_MODELS, read_only=False),
        store_mount("/store/datasets", STORE_DATASETS, read_only=False),
        store_mount("/store/work", STORE_WORK, read_only=False),  # of resources that are gone, to be removed
        store_mount("/work", work_folder(uid), read_only=False),
    ]


def _hub(settings: Settings) -> dict[str, Any]:
    hub = settings.hub
    return {
        "hub_endpoint": hub.endpoint,
        "refused_addresses": hub.refused_addresses,
        "max_bytes": hub.max_bytes,
    }


def _queue_labels(job: FineTuneJob) -> dict[str, str]:
    """Only the stage that holds an accelerator waits in the job's queue."""
    queue = job.metadata.labels.get(QUEUE_LABEL, "")
    priority = {QUEUE_PRIORITY_LABEL: job.spec.priority} if job.spec.priority else {}
    return {QUEUE_LABEL: queue} | priority if queue else {}


def _given(fetched: FetchResult | None) -> FetchResult:
    if fetched is None:
        raise ValueError("a stage after fetch was asked for, but fetch has no result")
    return fetched


def _words(kind: str, owner: ObjectMeta) -> str:
    return f"{kind} {owner.namespace}/{owner.name}"
