"""FineTuneJob status: what was found and done, for people and programs.

Measured numbers are JSON numbers, not strings: one writer rounds them, nobody writes them back, and ``jq`` can
compute with them. Every list has a maximum, so that a full status stays under 64 KiB. Never a place for secrets.
"""

from typing import Annotated, Literal

from pydantic import Field

from tuneloop_core.api.base import StatusModel
from tuneloop_core.api.conditions import Condition
from tuneloop_core.api.formats import Timestamp
from tuneloop_core.api.shape import ModelShape


class StageStatus(StatusModel):
    """One stage: fetch, check, plan, train or publish. A stage that has succeeded is never run again."""

    name: str = Field(max_length=32, description="fetch, check, plan, train or publish.")
    state: Literal["Pending", "Running", "Succeeded", "Failed"] = Field(description="Where it is.")
    start_time: Timestamp | None = Field(default=None, description="When its Job was made.")
    finish_time: Timestamp | None = Field(default=None, description="When it ended.")
    attempts: int = Field(default=0, ge=0, description="Pods that ran so far.")
    job_uid: str | None = Field(default=None, max_length=64, description="UID of its Job.")
    retries_used: int | None = Field(
        default=None, ge=0, description="Of train, spec.retries when it failed for good; a higher one lets it go on."
    )
    reason: str = Field(default="", max_length=128, description="A constant in CamelCase when it waits or failed.")
    message: str = Field(default="", max_length=1024, description="What was found and what to do next.")


class ProgressStatus(StatusModel):
    """Where training is now; written at most every few seconds while it runs."""

    phase: str = Field(
        default="", max_length=32, description="Loading, BaseEvaluation, Training, TunedEvaluation, Saving or Done."
    )
    step: float = Field(default=0, ge=0, description="Optimiser steps done; a fraction within a long step.")
    total_steps: int = Field(default=0, ge=0, description="Steps in all.")
    percent: int = Field(default=0, ge=0, le=100, description="Of the whole train stage.")
    loss: float | None = Field(default=None, description="Training loss of the last step, nats per trained token.")
    tokens_per_second: float | None = Field(default=None, ge=0, description="Real tokens, padding excluded.")
    eta: str = Field(default="", max_length=32, description="Time left of the train stage, such as 3m10s.")
    updated_time: Timestamp | None = Field(default=None, description="When this was read from the pod.")


class CurvePoint(StatusModel):
    """One point of the loss curve."""

    step: int = Field(ge=0, description="Optimiser step.")
    loss: float = Field(description="Training loss, nats per trained token.")


class MemoryPlan(StatusModel):
    """Peak memory by part, bytes; together they are memoryBytes."""

    weights: int = Field(default=0, ge=0, description="The model and its adapter.")
    gradients: int = Field(default=0, ge=0, description="Summed gradients of what is trained.")
    optimizer: int = Field(default=0, ge=0, description="Float32 copies and moments of what is trained.")
    activations: int = Field(default=0, ge=0, description="What a pack keeps for backward.")
    logits: int = Field(default=0, ge=0, description="A chunk of the loss; logits are never whole.")
    evaluation: int = Field(default=0, ge=0, description="What generating answers takes beyond that.")
    overhead: int = Field(default=0, ge=0, description="The process and its libraries, or the device's context.")


class PlanStatus(StatusModel):
    """What the job will take, computed before an accelerator is held."""

    steps: int = Field(default=0, ge=0, description="Optimiser steps in all.")
    tokens: int = Field(default=0, ge=0, description="Tokens that training will see.")
    total_parameters: int = Field(default=0, ge=0, description="Parameters of the base model.")
    trainable_parameters: int = Field(default=0, ge=0, description="Parameters that are trained.")
    memory_bytes: int = Field(
        default=0, ge=0, description="Peak memory expected per accelerator, or of the pod on CPU."
    )
    memory: MemoryPlan | None = Field(default=None, description="The same by part.")
    memory_limit_bytes: int = Field(default=0, ge=0, description="Memory available there; 0 when it is not known.")
    host_memory_bytes: int = Field(
        default=0, ge=0, description="Most memory expected of each train pod beside its accelerators; 0 on CPU."
    )
    accelerator: str = Field(default="", max_length=63, description="What the plan is for; empty on CPU.")
    pack_tokens: int = Field(default=0, ge=0, description="Tokens of the largest pack that it is for.")
    recompute: bool = Field(default=False, description="Activations are computed again in backward, to save memory.")
    shards: int = Field(
        default=1, ge=1, description="Accelerators that the weights are split over; 1: each holds all of them."
    )
    price: float = Field(default=0, ge=0, description="Expected price of the train stage.")
    price_per_hour: float = Field(default=0, ge=0, description="Of all accelerators, or cores, that the job holds.")
    currency: str = Field(default="", max_length=8, description="Of the prices.")
    estimated_duration: str = Field(default="", max_length=32, description="Expected time of the train stage.")
    evaluation_duration: str = Field(
        default="", max_length=32, description="Of it, what is not training: loading, and scoring base and tuned model."
    )
    tasks_duration: str = Field(
        default="", max_length=32, description="Of that, what asking both models evaluation.tasks takes."
    )
    message: str = Field(default="", max_length=1024, description="The plan in words, with its assumptions.")


class DatasetStatus(StatusModel):
    """What the check stage found; lengths in tokens of the model's tokenizer, template included."""

    uri: str = Field(default="", max_length=512, description="Where it came from.")
    validation_uri: str = Field(
        default="", max_length=512, description="Where the held-out rows came from, if not from there."
    )
    digest: str = Field(default="", max_length=80, description="sha256:HEX of its files, the held-out ones too.")
    path: str = Field(default="", max_length=512, description="Its folder in the store.")
    bytes: int = Field(default=0, ge=0, description="Size in the store.")
    format: str = Field(default="", max_length=32, description="What its rows are: Chat, Instruction and so on.")
    rows: int = Field(default=0, ge=0, description="Rows in all.")
    train_rows: int = Field(default=0, ge=0, description="Rows to train on.")
    validation_rows: int = Field(default=0, ge=0, description="Rows held out.")
    train_tokens: int = Field(default=0, ge=0, description="Tokens in the training rows.")
    trained_tokens: int = Field(default=0, ge=0, description="Of them, those that carry loss: the answers.")
    validation_tokens: int = Field(default=0, ge=0, description="Tokens in the held-out rows.")
    max_tokens: int = Field(default=0, ge=0, description="Longest row.")
    p50_tokens: int = Field(default=0, ge=0, description="Median row.")
    p95_tokens: int = Field(default=0, ge=0, description="95th percentile row.")
    truncated_rows: int = Field(default=0, ge=0, description="Rows longer than training.maxSequenceLength.")
    duplicate_rows: int = Field(default=0, ge=0, description="Rows equal to one before them.")
    leaked_rows: int = Field(
        default=0, ge=0, description="Rows of a validation file that ask what a training row asks."
    )
    packing_efficiency: float | None = Field(
        default=None, ge=0, le=1, description="Tokens over what the packs of maxSequenceLength tokens could hold."
    )
    classes: int = Field(default=0, ge=0, description="Classes, where the rows are labelled texts.")
    template: str = Field(default="", max_length=32, description="How the trained part is found.")
    example: str = Field(default="", max_length=1024, description="One example as the model sees it.")
    task_tokens: int = Field(
        default=0,
        ge=0,
        description="Tokens that a model sees when it is asked evaluation.tasks once, estimated from a few rows; a "
        "generated one counts as four.",
    )
    task_passes: int = Field(
        default=0,
        ge=0,
        description="Passes of one row in which it sees them, estimated alike: one a prompt, one a generated token.",
    )


class ModelStatus(StatusModel):
    """The model as it was resolved; used to the end, whatever its branch does."""

    uri: str = Field(default="", max_length=512, description="The resolved URI, with commit or digest.")
    commit: str = Field(default="", max_length=80, description="Commit of the hub, or digest of the files.")
    path: str = Field(default="", max_length=512, description="Its folder in the store.")
    bytes: int = Field(default=0, ge=0, description="Size in the store.")
    shape: ModelShape | None = Field(default=None, description="Sizes by its config.json, that the plan needs.")


class CheckpointStatus(StatusModel):
    """The last checkpoint: what a lost pod goes on from."""

    step: int = Field(ge=0, description="Its optimiser step.")
    time: Timestamp = Field(description="When it was written.")
    best_step: int | None = Field(
        default=None, ge=0, description="With earlyStopping, the step of the lowest held-out loss so far."
    )


class NoticeStatus(StatusModel):
    """Something that training met and dealt with by itself."""

    reason: str = Field(
        max_length=64,
        description="CheckpointCorrupt, LossSpike, EarlyStopped, BestKept, Tracked or TrackingFailed, as in the Event.",
    )
    message: str = Field(default="", max_length=512, description="What was found and what was done.")


class ScoresStatus(StatusModel):
    """Scores of one model on the held-out rows."""

    eval_loss: float | None = Field(
        default=None,
        description="Mean cross-entropy, nats per trained token; with DPO, KTO and classes mean loss per row.",
    )
    perplexity: float | None = Field(default=None, description="exp(evalLoss).")
    exact_match: float | None = Field(default=None, description="Share of generated answers equal to the reference.")
    rouge_l: float | None = Field(default=None, description="ROUGE-L F1 of generated answers, mean, 0 to 1.")
    reward_accuracy: float | None = Field(
        default=None, description="DPO, KTO: share of rows whose liked answer gained more over the base, 0 to 1."
    )
    reward_margin: float | None = Field(
        default=None, description="DPO, KTO: mean reward of liked less that of disliked answers; beta times nats."
    )
    accuracy: float | None = Field(default=None, description="Classification: share of right classes, 0 to 1.")
    f1: float | None = Field(default=None, description="Classification: F1 averaged over the classes, 0 to 1.")
    tasks: dict[str, float] = Field(
        default={}, max_length=24, description="TASK/METRIC of evaluation.tasks, as lm-eval computes it."
    )
    samples: int = Field(default=0, ge=0, description="Rows that the loss is over.")
    generations: int = Field(default=0, ge=0, description="Answers generated.")


class GateStatus(StatusModel):
    """One gate: what was asked and what was found."""

    metric: str = Field(max_length=128, description="The score.")
    passed: bool = Field(description="Whether it was reached.")
    message: str = Field(default="", max_length=512, description="By how much it was passed or missed.")


class EvaluationStatus(StatusModel):
    """Base and tuned model side by side."""

    base: ScoresStatus | None = Field(default=None, description="The base model.")
    tuned: ScoresStatus | None = Field(default=None, description="The tuned model.")
    gates: list[GateStatus] = Field(default=[], max_length=8, description="The gates, in the order of the spec.")


class ArtifactStatus(StatusModel):
    """What was published; a ModelDeployment takes it from here."""

    kind: Literal["Adapter", "Model"] = Field(description="Adapter: LoRA weights. Model: whole weights.")
    uri: str = Field(
        default="",
        max_length=640,
        description="The copy that output asked for, by digest, commit or tag and digest; empty without one.",
    )
    digest: str = Field(max_length=80, description="sha256:HEX over its files; a version is its digest.")
    path: str = Field(max_length=512, description="Its folder in the namespace's store.")
    bytes: int = Field(default=0, ge=0, description="Size.")


class UsageStatus(StatusModel):
    """What the job cost."""

    accelerator_seconds: float = Field(default=0, ge=0, description="Accelerators times seconds of train pods.")
    training_seconds: float = Field(default=0, ge=0, description="Seconds of the training loop, all tries together.")
    train_seconds: float = Field(
        default=0, ge=0, description="Seconds of train pods, all tries together: beside plan.estimatedDuration."
    )
    peak_memory_bytes: int = Field(
        default=0, ge=0, description="Most memory that training used, as measured: beside plan.memoryBytes."
    )
    price: float = Field(default=0, ge=0, description="trainSeconds at plan.pricePerHour, in plan.currency.")
    counted_until: Timestamp | None = Field(
        default=None, description="Train pods are counted up to this time; what they run later is added."
    )


class FineTuneJobStatus(StatusModel):
    """Starts as observedGeneration -1, so that kstatus says InProgress until the operator has looked."""

    observed_generation: int = Field(
        default=-1, ge=-1, description="The metadata.generation that this status is about."
    )
    conditions: Annotated[list[Condition], Field(max_length=16)] = Field(
        default=[],
        description="Ready, Reconciling, Stalled, Complete, Failed, Suspended, and one per stage.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    stage: str = Field(
        default="",
        max_length=32,
        description="The stage in one word, for people: Fetching, Checking, Planning, Training, Publishing, Succeeded, "
        "Failed, Suspended ...",
    )
    stages: Annotated[list[StageStatus], Field(max_length=8)] = Field(
        default=[],
        description="Each stage, in order.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    progress: ProgressStatus | None = Field(default=None, description="Where training is now.")
    curve: list[CurvePoint] = Field(default=[], max_length=64, description="The loss curve, thinned to 16 points.")
    plan: PlanStatus | None = Field(default=None, description="What the job will take.")
    model: ModelStatus | None = Field(default=None, description="The resolved model.")
    dataset: DatasetStatus | None = Field(default=None, description="What the check found.")
    checkpoint: CheckpointStatus | None = Field(default=None, description="The last checkpoint.")
    resumes: int = Field(default=0, ge=0, description="How often training went on from a checkpoint.")
    notices: list[NoticeStatus] = Field(
        default=[], max_length=4, description="What the job met and dealt with, the last four."
    )
    evaluation: EvaluationStatus | None = Field(default=None, description="Scores and gates.")
    artifact: ArtifactStatus | None = Field(default=None, description="What was published.")
    usage: UsageStatus | None = Field(default=None, description="What it cost.")
