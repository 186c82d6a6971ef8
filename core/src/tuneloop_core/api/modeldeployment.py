"""ModelDeployment: what a user asks for. The kind that serves a base model and its adapters behind the gateway.

Defaults here are the API server's defaults: the CRD is generated from this file. Never computes anything.
"""

from typing import Annotated, Literal

from pydantic import Field

from tuneloop_core.api.access import Access
from tuneloop_core.api.affinity import LabelSelector
from tuneloop_core.api.base import SpecModel, StatusModel, cel, rules
from tuneloop_core.api.conditions import ObjectMeta
from tuneloop_core.api.engine import EngineSettings
from tuneloop_core.api.finetunejob import ACCELERATOR_RESOURCE_RULE, ACCELERATOR_VENDOR_RULE
from tuneloop_core.api.formats import JobName, ResourceName
from tuneloop_core.api.modeldeployment_status import ModelDeploymentStatus
from tuneloop_core.api.pod import PodSettings
from tuneloop_core.api.rollout import Rollout
from tuneloop_core.api.scaling import Scaling, ServiceLevel
from tuneloop_core.api.sources import (
    MODEL_ENDPOINT,
    PVC_NEEDS_NO_SECRET,
    REVISION_ONLY_HUB,
    Endpoint,
    ModelURI,
    Revision,
)

_ADAPTER_NAME_RULE = cel(
    "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
    "an adapter's name is what clients send as 'model': at most 63 lower-case letters, digits and '-'",
)


class ServedModel(SpecModel):
    """The base model: from a hub or a claim, or published by a FineTuneJob."""

    model_config = {
        "json_schema_extra": rules(
            cel(
                "has(self.uri) != has(self.fineTuneJob)",
                "model needs exactly one of uri (hf://ORG/NAME, s3://BUCKET/PREFIX, oci://REGISTRY/REPOSITORY[:TAG], "
                "pvc://CLAIM/PATH) and fineTuneJob",
            ),
            REVISION_ONLY_HUB,
            PVC_NEEDS_NO_SECRET,
            MODEL_ENDPOINT,
        )
    }

    uri: ModelURI | None = Field(
        default=None,
        description="hf://ORG/NAME, s3://BUCKET/PREFIX, oci://REGISTRY/REPOSITORY[:TAG] or pvc://CLAIM/PATH; weights "
        "must be safetensors.",
    )
    endpoint: Endpoint = Field(
        default="",
        description="Address of the S3 service when it is not Amazon's, or of a registry that has no TLS, such as "
        "http://registry.tools.svc:5000.",
    )
    revision: Revision = Field(
        default="main",
        description="Branch, tag or commit of a hf:// repository. It is resolved to a commit once, shown in "
        "status.model.commit; a commit here makes the deployment reproducible, as a digest in an oci:// uri does.",
    )
    credentials_secret: ResourceName = Field(
        default="",
        description="Secret of this namespace: key 'token' for hf://; 'accessKeyId', 'secretAccessKey' and optionally "
        "'sessionToken' for s3://; 'token' and optionally 'username' for oci://. Only the fetch pod has it.",
    )
    fine_tune_job: JobName | None = Field(
        default=None,
        description="A FineTuneJob of this namespace publishing a whole model (method.merge; adapter None, DoRA). "
        "It is waited for, and its artifact served when it has succeeded.",
    )


class AdapterSource(SpecModel):
    """Where an adapter comes from."""

    model_config = {
        "json_schema_extra": rules(
            cel(
                "[has(self.fineTuneJob), has(self.selector), has(self.uri)].filter(given, given).size() == 1",
                "from needs exactly one of fineTuneJob, selector and uri",
            ),
            cel(
                "!has(self.revision) || (has(self.uri) && self.uri.startsWith('hf://'))",
                "revision selects a branch, tag or commit of a hf:// repository; leave it out otherwise",
            ),
            cel(
                "!has(self.endpoint) || self.endpoint == '' || (has(self.uri) && self.uri.matches('^(s3|oci)://'))",
                "endpoint is the address of an S3 service or of a registry and goes with an s3:// or oci:// uri only; "
                "leave it out otherwise",
            ),
            cel(
                "has(self.uri) || !has(self.credentialsSecret) || self.credentialsSecret == ''",
                "credentialsSecret goes with a uri: what a FineTuneJob published lies in this namespace already",
            ),
            PVC_NEEDS_NO_SECRET,
            cel(
                "!has(self.selector) || (has(self.selector.matchLabels) && self.selector.matchLabels.size() > 0) || "
                "(has(self.selector.matchExpressions) && self.selector.matchExpressions.size() > 0)",
                "an empty selector would take any job: say by matchLabels or matchExpressions which jobs are meant",
                ".selector",
            ),
            cel(
                "!has(self.selector) || !has(self.selector.matchExpressions) || self.selector.matchExpressions.all(e, "
                "(e.operator in ['In', 'NotIn']) == (has(e.values) && e.values.size() > 0))",
                "In and NotIn need values, Exists and DoesNotExist take none",
                ".selector",
            ),
        )
    }

    fine_tune_job: JobName | None = Field(
        default=None,
        description="A FineTuneJob of this namespace. It is waited for, and its artifact loaded when it has succeeded.",
    )
    selector: LabelSelector | None = Field(
        default=None,
        description="FineTuneJobs of this namespace by labels: the one created last that has succeeded (its gates "
        "passed), published an adapter and trained on this deployment's base commit. A newer one that succeeds takes "
        "its place; status.adapters says which was chosen, and why others were not.",
    )
    uri: ModelURI | None = Field(
        default=None,
        description="An adapter made elsewhere, in PEFT's format (adapter_config.json, adapter_model.safetensors): "
        "hf://ORG/NAME, s3://BUCKET/PREFIX, oci://REGISTRY/REPOSITORY[:TAG] or pvc://CLAIM/PATH. It is fetched into "
        "the namespace's store once, checked, and served as it was then until this block changes.",
    )
    revision: Revision | None = Field(
        default=None, description="Branch, tag or commit of a hf:// repository; left out it is main."
    )
    endpoint: Endpoint = Field(
        default="",
        description="Address of the S3 service when it is not Amazon's, or of a registry that has no TLS.",
    )
    credentials_secret: ResourceName = Field(
        default="",
        description="Secret of this namespace with the right to read the uri: 'token' for hf://; 'accessKeyId', "
        "'secretAccessKey' and optionally 'sessionToken' for s3://; 'token' and optionally 'username' for oci://. Only "
        "the fetch pod mounts it.",
    )


class AdapterSpec(SpecModel):
    """An adapter served over the base, hot-loaded: no restart."""

    name: str = Field(
        min_length=1,
        max_length=63,
        description="What clients send as 'model'; not the deployment's own name, which is the base model's.",
        json_schema_extra=rules(_ADAPTER_NAME_RULE),
    )
    source: AdapterSource = Field(alias="from", description="Where it comes from.")


class ServingResources(SpecModel):
    """Accelerators of one replica."""

    accelerators: int = Field(
        default=1,
        ge=0,
        le=8,
        description="Accelerators per replica, in one pod, over which the model is split; 0 serves on CPU.",
    )
    accelerator_resource: str = Field(
        default="nvidia.com/gpu",
        max_length=128,
        description="The node resource that an accelerator is, such as nvidia.com/gpu or nvidia.com/mig-1g.10gb.",
        json_schema_extra=rules(ACCELERATOR_RESOURCE_RULE, ACCELERATOR_VENDOR_RULE),
    )


class ModelDeploymentSpec(SpecModel):
    """A base model, its adapters, and how they are served."""

    model_config = {
        "json_schema_extra": rules(
            cel(
                "self.resources.accelerators > 0 || self.engine.quantization != 'FP8'",
                "FP8 needs accelerators: on CPU (resources.accelerators: 0) use None, or AWQ or GPTQ with a model that "
                "is published so",
                ".engine.quantization",
            )
        )
    }

    model: ServedModel = Field(description="The base model.")
    adapters: Annotated[list[AdapterSpec], Field(max_length=128)] = Field(
        default=[],
        description="Adapters served over the base, each under its own name.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    engine: EngineSettings = Field(default=EngineSettings(), description="The engine.")
    resources: ServingResources = Field(default=ServingResources(), description="Accelerators of one replica.")
    pod: PodSettings = Field(default=PodSettings(), description="Sizes, place and labels of the server pods.")
    scaling: Scaling = Field(default=Scaling(), description="How many replicas.")
    slo: ServiceLevel | None = Field(
        default=None,
        description="Promised latency; status.latency says how much is kept. While it is broken, replicas are added up "
        "to maxReplicas.",
    )
    rollout: Rollout | None = Field(
        default=None, description="How a new version takes over; left out it is RollingUpdate."
    )
    access: Access | None = Field(
        default=None, description="Who may call it. Left out it is closed, unless the chart says otherwise."
    )


class ModelDeployment(StatusModel):
    """Serves a foundation model and its adapters at an OpenAI-compatible URL, and measures what users feel."""

    model_config = {
        "json_schema_extra": rules(
            cel(
                "!has(self.spec.adapters) || self.spec.adapters.all(a, a.name != self.metadata.name)",
                "an adapter must not have the deployment's own name, which is the base model's: name it otherwise",
            )
        )
    }

    api_version: str = Field(default="tuneloop.dev/v1alpha1", description="tuneloop.dev/v1alpha1")
    kind: Literal["ModelDeployment"] = Field(default="ModelDeployment", description="ModelDeployment")
    metadata: ObjectMeta = Field(description="Standard object metadata.")
    spec: ModelDeploymentSpec = Field(description="What is asked for.")
    status: ModelDeploymentStatus = Field(default=ModelDeploymentStatus(), description="What was found and done.")
