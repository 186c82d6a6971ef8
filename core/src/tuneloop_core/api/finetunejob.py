"""FineTuneJob: what a user asks for. The kind that turns a foundation model and a dataset into a measured adapter.

Defaults here are the API server's defaults: the CRD is generated from this file. Never computes anything.
"""

from typing import Annotated, Literal

from pydantic import Field

from tuneloop_core.api.base import SpecModel, StatusModel, cel, rules
from tuneloop_core.api.conditions import ObjectMeta
from tuneloop_core.api.evaltasks import GATES_NAME_LISTED_TASKS, METRIC_RULE, TaskList
from tuneloop_core.api.finetunejob_status import FineTuneJobStatus
from tuneloop_core.api.formats import Decimal, Duration, ResourceName, decimal_rule, duration_rule
from tuneloop_core.api.method import LoRASettings, Method
from tuneloop_core.api.pod import PodSettings
from tuneloop_core.api.sources import PVC_NEEDS_NO_SECRET, DatasetSource, Endpoint, ModelSource
from tuneloop_core.api.tracking import Tracking
from tuneloop_core.api.uri_rules import output_uri_rules

MUTABLE_FIELDS = ("suspend", "priority", "retries", "output")
"""All that may change in the spec of a FineTuneJob; the CEL rule on the parent is generated from this."""

OUTPUT_UNTIL_PUBLISHED = cel(
    "!has(oldSelf.status) || !has(oldSelf.status.artifact) || "
    "(has(self.spec.output) == has(oldSelf.spec.output) && "
    "(!has(self.spec.output) || self.spec.output == oldSelf.spec.output))",
    "output may change until the artifact is published, and it is: copy it from the store, or make a new job",
    ".spec.output",
)
"""A wrong bucket must not cost a training; a finished job acts on nothing any more."""

ACCELERATOR_RESOURCE_RULE = cel(
    "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$')",
    "acceleratorResource must be an extended resource such as nvidia.com/gpu or nvidia.com/mig-1g.10gb",
)

ACCELERATOR_VENDOR_RULE = cel(
    "!self.matches('^(amd[.]com|gpu[.]intel[.]com|habana[.]ai|google[.]com|aws[.]amazon[.]com)/')",
    "acceleratorResource names no NVIDIA accelerator, and the images of this release compute on those (CUDA) only: "
    "choose one such as nvidia.com/gpu",
)


class EarlyStopping(SpecModel):
    """Stop when the held-out loss no longer falls; the weights that were best are kept, evaluated and published."""

    interval: int = Field(
        ge=1,
        le=1_000_000,
        description="Optimiser steps between two looks at the held-out loss, over evaluation.maxSamples rows.",
    )
    patience: int = Field(
        default=3, ge=1, le=100, description="Looks in a row without a lower loss after which training stops."
    )


class Training(SpecModel):
    """How long and how fast."""

    epochs: int = Field(default=3, ge=1, le=1000, description="Passes over the data, unless maxSteps ends it earlier.")
    max_steps: int = Field(default=0, ge=0, le=10_000_000, description="Stop after this many steps; 0 is no limit.")
    max_duration: Duration = Field(
        default="4h",
        description="Stop training after this time, all tries together; what was learnt by then is evaluated.",
        json_schema_extra=rules(
            duration_rule("duration(self) >= duration('1s')", 'maxDuration must be at least "1s"; "4h" is the default')
        ),
    )
    learning_rate: Decimal = Field(
        default="2e-4",
        description='Peak learning rate, a decimal in quotes such as "2e-4"; warms up, then decays by a cosine.',
        json_schema_extra=rules(
            decimal_rule(
                "double(self) > 0.0 && double(self) <= 1.0",
                'learningRate must be above 0 and at most 1, such as "2e-4"',
            )
        ),
    )
    tokens_per_step: int = Field(
        default=16384,
        ge=1,
        le=16_777_216,
        description="Tokens in one optimiser step, over all accelerators and accumulation.",
    )
    max_sequence_length: int = Field(
        default=2048,
        ge=16,
        le=1_048_576,
        description="Longest example in tokens; longer ones are cut, and status.dataset.truncatedRows counts them.",
    )
    packing: bool = Field(
        default=True,
        description="Put several examples into one sequence, each seeing only itself: no time is spent on padding.",
    )
    seed: int = Field(default=7, ge=0, le=2_147_483_647, description="Seed of the split, the order and the adapter.")
    step_timeout: Duration = Field(
        default="30m",
        description="Longest time without progress in a step (a pack: 1,024 tokens on CPU, 8,192 on an accelerator). "
        "Longer is a hang: the pod ends as StepTimeout, and a retry goes on from the checkpoint. An evaluation may be "
        "silent for ten minutes at least.",
        json_schema_extra=rules(
            duration_rule("duration(self) >= duration('1s')", 'stepTimeout must be at least "1s"; "30m" is the default')
        ),
    )
    early_stopping: EarlyStopping | None = Field(
        default=None, description="Stop when the held-out loss no longer falls. Off by default."
    )


class TrainingResources(SpecModel):
    """Accelerators of the train stage; all other stages run on CPU."""

    accelerators: int = Field(
        default=1, ge=0, le=8, description="Accelerators per node; 0 trains on CPU, with one process a node."
    )
    accelerator_resource: str = Field(
        default="nvidia.com/gpu",
        max_length=128,
        description="The node resource that an accelerator is, such as nvidia.com/gpu or nvidia.com/mig-1g.10gb.",
        json_schema_extra=rules(ACCELERATOR_RESOURCE_RULE, ACCELERATOR_VENDOR_RULE),
    )
    nodes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Pods that train together, each with so many accelerators. The store must be one that all their "
        "nodes can mount (ReadWriteMany).",
    )


class CheckpointSettings(SpecModel):
    """How often work is saved, so that a lost pod costs at most this much."""

    interval: Duration = Field(
        default="10m",
        description="Time between checkpoints; one is also written when the pod is told to stop.",
        json_schema_extra=rules(
            duration_rule(
                "duration(self) >= duration('1s')",
                'interval must be at least "1s"; minutes are usual, since each checkpoint holds up training',
            )
        ),
    )
    keep: int = Field(default=2, ge=1, le=20, description="Checkpoints kept; older ones are removed.")


_BOUNDS = ("max", "min", "ratioToBaseMax", "ratioToBaseMin")


class Gate(SpecModel):
    """A score that the tuned model must reach, or nothing is published and the job ends as Failed/GateFailed."""

    model_config = {
        "json_schema_extra": rules(
            cel(
                f"[{', '.join(f'has(self.{bound})' for bound in _BOUNDS)}].filter(given, given).size() == 1",
                "a gate has exactly one bound: max, min, ratioToBaseMax or ratioToBaseMin",
            ),
            cel(
                "self.metric != 'rewardAccuracy' || (!has(self.ratioToBaseMax) && !has(self.ratioToBaseMin))",
                "rewards are counted from the base model, whose own are 0: bound rewardAccuracy by min or max",
            ),
        )
    }

    metric: str = Field(
        max_length=128,
        json_schema_extra=rules(METRIC_RULE),
        description="evalLoss: nats per trained token, with DPO, KTO and classes the loss per row, lower is better; "
        "perplexity: exp of it; exactMatch and rougeL: 0 to 1 over the generated answers, higher is better; "
        "rewardAccuracy (DPO, KTO): share of held-out rows whose liked answer gained more; accuracy "
        "and f1 (SequenceClassification): share of right classes, and F1 averaged over classes; all 0 to 1. "
        "TASK/METRIC: a score of evaluation.tasks, such as arc_easy/acc or gsm8k/exact_match/strict-match.",
    )
    max: Decimal | None = Field(default=None, description="The tuned score must be at most this.")
    min: Decimal | None = Field(default=None, description="The tuned score must be at least this.")
    ratio_to_base_max: Decimal | None = Field(
        default=None, description='Tuned over base must be at most this: "0.95" asks for 5 % less loss than the base.'
    )
    ratio_to_base_min: Decimal | None = Field(
        default=None, description='Tuned over base must be at least this: "1.2" asks for 20 % more than the base.'
    )


class EvaluationSettings(SpecModel):
    """How base and tuned model are compared on the held-out rows."""

    model_config = {
        "json_schema_extra": rules(
            cel(
                "self.generations > 0 || !has(self.gates) || "
                "!self.gates.exists(g, g.metric in ['exactMatch', 'rougeL'])",
                "gates on exactMatch and rougeL need generated answers: set evaluation.generations above 0",
                ".generations",
            ),
            GATES_NAME_LISTED_TASKS,
        )
    }

    max_samples: int = Field(default=200, ge=1, le=10_000, description="Held-out rows used for the loss, at most.")
    generations: int = Field(
        default=32, ge=0, le=1000, description="Answers generated for exactMatch and rougeL; 0 generates none."
    )
    max_new_tokens: int = Field(default=64, ge=1, le=4096, description="Longest generated answer, tokens.")
    gates: Annotated[list[Gate], Field(max_length=8)] = Field(
        default=[], description="All must pass, or nothing is published and the work is kept."
    )
    tasks: TaskList = Field(
        default=[],
        description="lm-eval tasks that base and tuned model are asked, offline; status.evaluation has their scores.",
    )
    publish_samples: bool = Field(
        default=True,
        description="Put questions of the held-out rows with the answers of base and tuned model into the artifact's "
        "report.html; false where the data must not travel with the artifact.",
    )


class Output(SpecModel):
    """Where a copy of the artifact goes besides the namespace's store."""

    model_config = {
        "json_schema_extra": rules(
            PVC_NEEDS_NO_SECRET,
            cel(
                "!has(self.endpoint) || self.endpoint == '' || self.uri.matches('^(s3|oci)://')",
                "endpoint is the address of an S3 service or of a registry and goes with an s3:// or oci:// uri only; "
                "leave it out otherwise",
            ),
        )
    }

    uri: Annotated[str, Field(max_length=512, json_schema_extra=rules(*output_uri_rules()))] = Field(
        description="s3://BUCKET/PREFIX, oci://REGISTRY/REPOSITORY[:TAG], hf://ORG/NAME or pvc://CLAIM/PATH. Below a "
        "prefix or path the copy lies under the artifact's digest; a hub repository that is missing is made private. "
        "status.artifact.uri names the copy."
    )
    endpoint: Endpoint = Field(
        default="",
        description="Address of the S3 service when it is not Amazon's, or of a registry that has no TLS, such as "
        "http://registry.tools.svc:5000.",
    )
    credentials_secret: ResourceName = Field(
        default="",
        description="Secret of this namespace with the right to write there: 'accessKeyId', 'secretAccessKey' and "
        "optionally 'sessionToken' for s3://, 'token' for hf://, 'token' (a password or access token) and optionally "
        "'username' for oci://. Only the publish pod mounts it.",
    )


class FineTuneJobSpec(SpecModel):
    """Fixed once made, but for suspend, priority, retries and output: a result then always belongs to one spec."""

    model_config = {
        "json_schema_extra": rules(
            cel(
                "self.method.objective == 'SFT' || !self.training.packing",
                "packing is for objective SFT: DPO and KTO compare whole answers; set training.packing: false",
                ".training.packing",
            ),
            cel(
                "self.method.objective != 'DPO' || self.dataset.format in ['Auto', 'Preference']",
                "DPO learns from pairs of answers: take dataset.format Preference or Auto, or objective SFT or KTO",
                ".dataset.format",
            ),
            cel(
                "self.method.objective != 'KTO' || self.dataset.format in ['Auto', 'UnpairedPreference']",
                "KTO learns from answers with thumbs up or down: take dataset.format UnpairedPreference or Auto, or "
                "objective SFT or DPO",
                ".dataset.format",
            ),
            cel(
                "self.method.task == 'TextGeneration' || self.dataset.format in ['Auto', 'Classification']",
                "SequenceClassification learns from texts with a class: take dataset.format Classification or Auto",
                ".dataset.format",
            ),
            cel(
                "self.method.task != 'TextGeneration' || self.dataset.format != 'Classification'",
                "texts with a class are learnt by method.task SequenceClassification",
                ".dataset.format",
            ),
            cel(
                "self.method.task == 'TextGeneration' || !has(self.evaluation.gates) || "
                "self.evaluation.gates.all(g, g.metric in ['evalLoss', 'accuracy', 'f1'])",
                "a classifier is measured by evalLoss, accuracy and f1: gate on these",
                ".evaluation.gates",
            ),
            cel(
                "self.method.task == 'TextGeneration' || !has(self.evaluation.tasks) || "
                "self.evaluation.tasks.size() == 0",
                "evaluation.tasks are asked of models that write text; a classifier is measured on its held-out rows",
                ".evaluation.tasks",
            ),
            cel(
                "self.method.task != 'TextGeneration' || !has(self.evaluation.gates) || "
                "!self.evaluation.gates.exists(g, g.metric in ['accuracy', 'f1'])",
                "accuracy and f1 are measured with method.task SequenceClassification only",
                ".evaluation.gates",
            ),
            cel(
                "self.method.objective != 'SFT' || !(self.dataset.format in ['Preference', 'UnpairedPreference'])",
                "SFT learns from answers: take objective DPO for format Preference, KTO for UnpairedPreference",
                ".dataset.format",
            ),
            cel(
                "self.method.objective != 'SFT' || !has(self.evaluation.gates) || "
                "!self.evaluation.gates.exists(g, g.metric == 'rewardAccuracy')",
                "rewardAccuracy is measured with objective DPO and KTO only; gate on evalLoss",
                ".evaluation.gates",
            ),
            cel(
                "self.method.objective == 'SFT' || !has(self.evaluation.gates) || "
                "!self.evaluation.gates.exists(g, g.metric == 'perplexity')",
                "perplexity is measured with objective SFT only; gate on rewardAccuracy or evalLoss",
                ".evaluation.gates",
            ),
        )
    }

    model: ModelSource = Field(description="The foundation model.")
    dataset: DatasetSource = Field(description="The training data.")
    method: Method = Field(default=Method(), description="Objective and adapter.")
    training: Training = Field(default=Training(), description="Length, rate and batch.")
    resources: TrainingResources = Field(default=TrainingResources(), description="Accelerators of the train stage.")
    pod: PodSettings = Field(
        default=PodSettings(),
        description="Sizes, place and labels of the train pod; imagePullSecrets serve the pods of every stage.",
    )
    checkpoint: CheckpointSettings = Field(default=CheckpointSettings(), description="When work is saved.")
    evaluation: EvaluationSettings = Field(default=EvaluationSettings(), description="Scores and gates.")
    output: Output | None = Field(
        default=None,
        description="Export of the artifact. It always lies in the namespace's store; without this, only there. "
        "May be changed until the artifact is published.",
    )
    tracking: Tracking | None = Field(
        default=None,
        description="Tell loss curve, scores and settings to an experiment tracker when the artifact is published. One "
        "that does not answer is told as a Warning (TrackingFailed); the job succeeds all the same.",
    )
    suspend: bool = Field(
        default=False, description="Stop after a checkpoint and give the accelerator back; false goes on from there."
    )
    priority: ResourceName = Field(
        default="",
        description="Kueue WorkloadPriorityClass of the train stage, for jobs with the label "
        "kueue.x-k8s.io/queue-name; a change counts while the job waits in its queue.",
    )
    retries: int = Field(
        default=3,
        ge=0,
        le=20,
        description="How often the train pod may fail of itself; disruptions do not count. A job that failed for good "
        "goes on from its checkpoint when this is raised.",
    )


class FineTuneJob(StatusModel):
    """Fine-tunes a foundation model on a dataset, compares it with its base, and publishes what passes its gates."""

    model_config = {"json_schema_extra": rules(OUTPUT_UNTIL_PUBLISHED)}

    api_version: str = Field(default="tuneloop.dev/v1alpha1", description="tuneloop.dev/v1alpha1")
    kind: Literal["FineTuneJob"] = Field(default="FineTuneJob", description="FineTuneJob")
    metadata: ObjectMeta = Field(description="Standard object metadata.")
    spec: FineTuneJobSpec = Field(description="What is asked for.")
    status: FineTuneJobStatus = Field(default=FineTuneJobStatus(), description="What was found and done.")


__all__ = [
    "ACCELERATOR_RESOURCE_RULE",
    "ACCELERATOR_VENDOR_RULE",
    "MUTABLE_FIELDS",
    "CheckpointSettings",
    "EarlyStopping",
    "EvaluationSettings",
    "FineTuneJob",
    "FineTuneJobSpec",
    "Gate",
    "LoRASettings",
    "Method",
    "Output",
    "Training",
    "TrainingResources",
]
