"""The contract between the operator and the stage pods of a FineTuneJob.

The operator puts a stage's input as JSON into ``TUNELOOP_STAGE_INPUT``; the pod writes its whole result to
``/work/<stage>/result.json`` and then a short ``Termination`` as its termination message. Never does I/O: these
are shapes only, so both sides test against the same models.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from tuneloop_core.api.shape import ModelShape


class Stage(StrEnum):
    """The stages of a FineTuneJob, in order. Plan has no pod: the operator computes it."""

    FETCH = "fetch"
    CHECK = "check"
    PLAN = "plan"
    TRAIN = "train"
    PUBLISH = "publish"


class Reason(StrEnum):
    """Why a stage failed, as the pod says it; the operator uses the same words as condition reasons."""

    MODEL_NOT_FOUND = "ModelNotFound"
    REVISION_NOT_FOUND = "RevisionNotFound"
    ACCESS_DENIED = "AccessDenied"
    GATED_MODEL_NOT_ACCEPTED = "GatedModelNotAccepted"
    ADAPTER_UNSUPPORTED = "AdapterUnsupported"  # no LoRA, or of a kind that no engine loads
    MODEL_UNSUPPORTED = "ModelUnsupported"  # no safetensors, remote code, unknown architecture
    HUB_UNAVAILABLE = "HubUnavailable"
    DATASET_NOT_FOUND = "DatasetNotFound"
    DATASET_INVALID = "DatasetInvalid"
    DATASET_CHANGED = "DatasetChanged"  # not the files that dataset.digest names
    URI_REFUSED = "URIRefused"  # leads to loopback, link-local, metadata, API server or node, or out of its claim
    STORE_FULL = "StoreFull"
    LOSS_NAN = "LossNaN"
    LOSS_SPIKE = "LossSpike"  # the loss rose far above what it was, and stayed there
    STEP_TIMEOUT = "StepTimeout"  # no progress within training.stepTimeout
    DEADLINE_EXCEEDED = "DeadlineExceeded"  # the train pod ran longer than its deadline
    PEERS_MISSING = "PeersMissing"  # the pods of a job did not meet in time
    PEER_LOST = "PeerLost"  # another process of the job ended; never the cause, all begin again
    OUT_OF_MEMORY = "OutOfMemory"
    ACCELERATOR_MISSING = "AcceleratorMissing"  # none that the image's torch can use: driver, kind or number
    ACCELERATOR_FAILED = "AcceleratorFailed"  # one that does not answer; another try may get another
    CHECKPOINT_CORRUPT = "CheckpointCorrupt"
    EARLY_STOPPED = "EarlyStopped"  # a notice: the held-out loss no longer fell
    BEST_KEPT = "BestKept"  # a notice: the weights of an earlier step were better than the last
    EXPORT_FAILED = "ExportFailed"
    TRACKED = "Tracked"  # a notice: the tracker has the run
    TRACKING_FAILED = "TrackingFailed"  # a notice: the tracker was not told, the artifact is published
    TERMINATED = "Terminated"  # SIGTERM obeyed, checkpoint saved
    INTERNAL_ERROR = "InternalError"

    @classmethod
    def _missing_(cls, value: object) -> "Reason":
        """A word of a later release; its message says what it is."""
        return cls.INTERNAL_ERROR


class Wire(BaseModel):
    """A JSON shape between two parts: camelCase outside, snake_case inside.

    Unknown keys are ignored: the parts are upgraded one after the other, and the pods of a model or a training not at
    all, so either side may be the older one (docs/contracts.md).
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


# ---- inputs: what the operator tells a pod -------------------------------------------------------------------


class StageInput(Wire):
    """Made for the very image that it starts: an unknown key says that operator and trainer image do not match."""

    model_config = ConfigDict(extra="forbid")


OWNER_CHARACTERS = 8
"""Of a UID in ``StoreUse.owners``: two that begin alike are both kept."""


class StoreUse(StageInput):
    """What of a namespace's store was in use at ``listed_at``; the rest may go when room is needed (ADR 0038)."""

    listed_at: str  # RFC 3339
    paths: list[str]  # folders of models and datasets, relative to the store's root
    owners: list[str]  # how the UIDs begin whose work folders are needed: all resources' but jobs' that succeeded


class FetchInput(StageInput):
    """Resolve and download model and dataset into the store. ``dataset`` is None for a ModelDeployment's fetch.

    With ``adapter`` that one thing is fetched instead, and the answer is an ``AdapterFetchResult``.
    """

    stage: Literal[Stage.FETCH] = Stage.FETCH
    owner: str  # "FineTuneJob NAMESPACE/NAME", for messages
    model: dict[str, Any] = {}  # spec.model, camelCase
    dataset: dict[str, Any] | None = None  # spec.dataset, camelCase
    adapter: dict[str, Any] | None = None  # spec.adapters[].from with a uri, camelCase
    tasks: list[dict[str, Any]] = []  # spec.evaluation.tasks, camelCase; their rows go to /work/tasks/NAME
    store: StoreUse | None = None  # None: it is not known, and nothing is removed
    hub_endpoint: str = ""  # HF_ENDPOINT; empty is the library's default
    refused_addresses: list[str] = []  # CIDRs or ADDRESS:PORT, besides those refused in every pod
    max_bytes: int = 0  # cap per download, bytes; 0 is no cap
    pvc_model_path: str = ""  # for pvc:// the mount below which the files lie
    pvc_dataset_path: str = ""
    pvc_validation_path: str = ""  # of dataset.validation.uri
    pvc_adapter_path: str = ""
    task_paths: dict[str, str] = {}  # of each task from a pvc://, the mount below which its files lie


class CheckInput(StageInput):
    """Check the dataset against the model's tokenizer and template; write the normalised rows to /work/data."""

    stage: Literal[Stage.CHECK] = Stage.CHECK
    owner: str
    dataset: dict[str, Any]
    dataset_digest: str = ""  # FetchResult.dataset_digest; empty keeps no tokens for other jobs
    method: dict[str, Any]
    training: dict[str, Any]
    evaluation: dict[str, Any] = {}  # spec.evaluation: its tasks are tried without a model, its gates looked up


class TrainInput(StageInput):
    """Base evaluation, training with checkpoints, tuned evaluation."""

    stage: Literal[Stage.TRAIN] = Stage.TRAIN
    owner: str
    method: dict[str, Any]
    training: dict[str, Any]
    checkpoint: dict[str, Any]
    evaluation: dict[str, Any]
    accelerators: int = 0
    simulated_accelerators: bool = False  # they are only numbers in the nodes' status: without a device, train on CPU
    recompute: bool = False  # as planned: activations are computed again in backward, to save memory
    shard: bool = False  # as planned: the model's weights are split over all processes
    pack_tokens: int = 0  # as planned, of a pack at most; 0 is the trainer's own size, which it halves when memory ends
    deadline_seconds: float = 0  # the pod ends itself after this time, with its checkpoint saved; 0 is never
    nodes: int = 1  # pods that train together, each with so many accelerators
    rendezvous: str = ""  # HOST:PORT of the first pod, where all meet

    @property
    def processes(self) -> int:
        """One for each accelerator, or for each pod on CPU."""
        return self.nodes * max(1, self.accelerators)


class PublishInput(StageInput):
    """Assemble the artifact and its manifest; then the export."""

    stage: Literal[Stage.PUBLISH] = Stage.PUBLISH
    owner: str
    name: str
    namespace: str
    spec: dict[str, Any]  # the whole spec as the user gave it, defaults filled
    fetch: "FetchResult"
    plan: dict[str, Any] = {}  # status.plan, camelCase: what the report sets beside what was measured
    usage: dict[str, Any] = {}  # status.usage after training, camelCase: time and price as measured
    trainer_image: str = ""
    operator_version: str = ""
    hub_endpoint: str = ""  # HF_ENDPOINT, for an export to hf://
    refused_addresses: list[str] = []  # as for fetch: exports may not lead there either


# ---- results: what a pod answers (short enough for a termination message) ------------------------------------


class FetchResult(Wire):
    """Where model and dataset lie in the store, relative to its root."""

    model_uri: str = Field(description="Resolved: hf://org/name@<commit> or pvc://claim/path@<digest>")
    model_path: str = Field(description="models/... below the store's root")
    model_commit: str
    model_bytes: int
    dataset_path: str = ""  # datasets/<digest>
    dataset_digest: str = ""  # sha256:<hex>
    dataset_bytes: int = 0
    cached: bool = False  # nothing had to be downloaded
    shape: ModelShape | None = None  # sizes by config.json, for the plan


class CheckResult(Wire):
    """The dataset in numbers; lengths in tokens of the model's tokenizer, template included."""

    format: str  # a data.rows.Format, never Auto
    rows: int
    train_rows: int
    validation_rows: int
    train_tokens: int
    trained_tokens: int  # of them, those that carry loss
    validation_tokens: int
    max_tokens: int
    p50_tokens: int
    p95_tokens: int
    truncated_rows: int
    duplicate_rows: int = 0  # equal to a row before them on their side of the split
    leaked_rows: int = 0  # of a validation file, those that ask what a training row asks
    packing_efficiency: float | None = None  # tokens / (packs x maxSequenceLength); None without packing
    classes: int = 0  # of a Classification dataset; their names are in data/labels.json
    template: str  # Markers | SpanFinder | Plain: how the trained part is found
    example: str = ""  # one rendered example, at most 600 characters
    task_tokens: int = 0  # that a model sees when it is asked evaluation.tasks once; estimated, a generated one is 4
    task_passes: int = 0  # of one row in which it does: one a prompt, one a generated token


class GateResult(Wire):
    """One gate: what was asked, what was found, by how much it passed or missed."""

    metric: str
    passed: bool
    message: str


class Scores(Wire):
    """Evaluation of one model; None is not measured.

    Loss is mean cross-entropy in nats per trained token, and perplexity exp(loss); with DPO and KTO it is the
    objective's mean loss per row, with classes nats per row. Rewards are beta times the nats that an answer gained over
    the base model.
    """

    eval_loss: float | None = None
    perplexity: float | None = None
    exact_match: float | None = None
    rouge_l: float | None = None
    reward_accuracy: float | None = None
    reward_margin: float | None = None
    accuracy: float | None = None
    f1: float | None = None
    tasks: dict[str, float] = {}  # TASK/METRIC of evaluation.tasks
    samples: int = 0
    generations: int = 0


class Notice(Wire):
    """Something that training met and dealt with by itself; told as an Event."""

    reason: Reason
    message: Annotated[str, Field(max_length=256)]


class TrainResult(Wire):
    """What training did; the curve is (step, loss), at most 64 points."""

    base: Scores
    tuned: Scores
    steps: int
    epochs: float
    tokens: int  # real tokens seen, padding excluded
    seconds: float  # of the training loop, all tries together
    tokens_per_second: float
    final_loss: float
    peak_memory_bytes: int
    trainable_parameters: int
    total_parameters: int
    resumes: int
    curve: Annotated[list[tuple[int, float]], Field(max_length=64)] = []
    checkpoint_time: str | None = None  # RFC 3339; of the last checkpoint, which is of step ``steps``
    best_step: int | None = None  # with early stopping: the step whose weights were kept
    notices: Annotated[list[Notice], Field(max_length=4)] = []


class PublishResult(Wire):
    """The artifact in the store, relative to its root, and where it was exported."""

    kind: Literal["Adapter", "Model"]
    path: str  # artifacts/<digest hex>
    digest: str  # sha256:<hex>, over the sorted file digests
    bytes: int
    exported_uri: str = ""
    gates: list[GateResult] = []
    notices: Annotated[list[Notice], Field(max_length=2)] = []


class Termination(Wire):
    """The pod's termination message, at most 3.5 KiB of JSON."""

    stage: Stage
    outcome: Literal["Succeeded", "Failed"]
    reason: Reason | None = None
    message: str = Field(default="", max_length=1024)
    result: dict[str, Any] | None = None


# ---- progress: GET :8080/progress of the training pod ---------------------------------------------------------


class Progress(Wire):
    """Where training is now; ``step`` may be fractional within a long step."""

    phase: Literal["Loading", "BaseEvaluation", "Training", "TunedEvaluation", "Saving", "Done"]
    step: float = 0
    total_steps: int = 0
    percent: int = 0  # of the whole stage, 0..100
    loss: float | None = None
    learning_rate: float | None = None
    tokens: int = 0
    tokens_per_second: float | None = None
    eta_seconds: int | None = None
    checkpoint_step: int | None = None
    checkpoint_time: str | None = None  # RFC 3339
    resumes: int = 0
    curve: list[tuple[int, float]] = []
    best_step: int | None = None
    notices: list[Notice] = []
