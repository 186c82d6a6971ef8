"""Public benchmarks and a user's own, by name: the lm-eval tasks on which base and tuned model are compared.

A task's rows come from where the spec says and are fetched like the dataset, so that nothing is asked of a hub while
an accelerator is held. Never names a metric: which scores a task gives, the check stage finds out.
"""

from typing import Annotated, Final

from pydantic import Field

from tuneloop_core.api.base import SpecModel, cel, rules
from tuneloop_core.api.formats import ResourceName
from tuneloop_core.api.sources import FILES_NEED_A_FOLDER, PVC_NEEDS_NO_SECRET, DatasetURI, Endpoint, FileGlob

TaskName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=96,
        json_schema_extra=rules(
            cel(
                "self.matches('^[A-Za-z0-9][A-Za-z0-9._+-]*$')",
                "a task is named as lm-eval names it, such as arc_easy or gsm8k: letters, digits, '.', '_', '+', '-'",
            )
        ),
    ),
]

GATES_NAME_LISTED_TASKS: Final = cel(
    "!has(self.gates) || self.gates.all(g, !g.metric.contains('/') || "
    "(has(self.tasks) && self.tasks.exists(t, g.metric.startsWith(t.name + '/'))))",
    "a gate names a task's score as TASK/METRIC, such as arc_easy/acc, and the task stands in evaluation.tasks",
    ".gates",
)
"""On the block with gates and tasks; whether the task has such a score, the check stage says."""

METRIC_RULE: Final = cel(
    "self in ['evalLoss', 'perplexity', 'exactMatch', 'rougeL', 'rewardAccuracy', 'accuracy', 'f1'] || "
    "self.matches('^[A-Za-z0-9][A-Za-z0-9._+-]*(/[A-Za-z0-9._+-]+){1,2}$')",
    "a metric is evalLoss, perplexity, exactMatch, rougeL, rewardAccuracy, accuracy, f1, or TASK/METRIC of a task in "
    "evaluation.tasks",
)


class TaskSource(SpecModel):
    """Where the rows of a task come from."""

    model_config = {
        "json_schema_extra": rules(
            PVC_NEEDS_NO_SECRET,
            cel(
                "!has(self.endpoint) || self.endpoint == '' || self.uri.startsWith('s3://')",
                "endpoint is the address of an S3 service and goes with an s3:// uri only; leave it out otherwise",
            ),
            FILES_NEED_A_FOLDER,
        )
    }

    uri: DatasetURI = Field(
        description="hf://datasets/ORG/NAME[/FOLDER], pvc://CLAIM/PATH, s3://BUCKET/KEY, s3://BUCKET/PREFIX/ or "
        "https://HOST/PATH: rows as the task expects them. A folder that also has NAME.yaml brings a task of your own: "
        "lm-eval's format, without code (!function, include)."
    )
    endpoint: Endpoint = Field(
        default="",
        description="Address of the S3 service when it is not Amazon's, such as https://minio.example.com.",
    )
    credentials_secret: ResourceName = Field(
        default="",
        description="Secret of this namespace: key 'token' for hf:// and https://; 'accessKeyId', 'secretAccessKey' "
        "and optionally 'sessionToken' for s3://. Only the fetch pod mounts it.",
    )
    files: Annotated[list[FileGlob], Field(max_length=16)] | None = Field(
        default=None, description="Which files below the uri, as in dataset.files. Default: all that can be read."
    )


class EvaluationTask(SpecModel):
    """One lm-eval task, or a group of them that has scores of its own."""

    name: TaskName = Field(description="As lm-eval names it: arc_easy, gsm8k, mmlu; or a task that the source brings.")
    source: TaskSource | None = Field(
        default=None,
        description="Where its rows come from. Default: the hub repository that lm-eval names for this task, from the "
        "hub of this installation.",
    )
    limit: int = Field(
        default=200,
        ge=0,
        le=1_000_000,
        description="Rows asked at most, of a group in each of its tasks; 0 asks all. Each row costs time with the "
        "accelerator held, once for the base and once for the tuned model.",
    )
    few_shot: int | None = Field(
        default=None, ge=0, le=64, description="Examples before each question. Default: what the task says."
    )
    chat_template: bool = Field(
        default=False, description="Ask through the model's chat template; for instruct models and generated answers."
    )


TaskList = Annotated[
    list[EvaluationTask],
    Field(max_length=8, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}),
]
