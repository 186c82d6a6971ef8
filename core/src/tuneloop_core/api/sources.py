"""Where models and datasets come from, and which URIs each field takes.

The CEL here refuses what can be seen in the text: schemes, ``..``, loopback and metadata hosts. The fetcher checks
again what only it can see: the addresses that names and redirects lead to. Never reads a Secret; names only.
"""

from typing import Annotated, Literal

from pydantic import Field

from tuneloop_core.api.base import SpecModel, cel, rules
from tuneloop_core.api.formats import Decimal, ResourceName, decimal_rule
from tuneloop_core.api.uri_rules import (
    FOLDER,
    PUBLIC_HOST,
    dataset_uri_rules,
    endpoint_rules,
    model_uri_rules,
)

DEFAULT_FRACTION = "0.1"

ModelURI = Annotated[str, Field(max_length=512, json_schema_extra=rules(*model_uri_rules()))]
DatasetURI = Annotated[str, Field(max_length=512, json_schema_extra=rules(*dataset_uri_rules()))]
Endpoint = Annotated[str, Field(max_length=256, json_schema_extra=rules(*endpoint_rules(), PUBLIC_HOST))]

REVISION_ONLY_HUB = cel(
    "!has(self.uri) || self.uri.startsWith('hf://') || self.revision == 'main'",
    "revision selects a branch, tag or commit of a hf:// repository; leave it out for other URIs",
)
"""Used on every block with uri and revision."""

MODEL_ENDPOINT = cel(
    "!has(self.endpoint) || self.endpoint == '' || (has(self.uri) && self.uri.matches('^(s3|oci)://'))",
    "endpoint is the address of an S3 service or of a registry and goes with an s3:// or oci:// uri only; "
    "leave it out otherwise",
)
"""Used on every block with a model's uri and endpoint."""

PVC_NEEDS_NO_SECRET = cel(
    "!has(self.uri) || !self.uri.startsWith('pvc://') || !has(self.credentialsSecret) || self.credentialsSecret == ''",
    "credentialsSecret is not used with pvc://: the claim is mounted; leave it out",
)
"""Used on every block with uri and credentialsSecret."""

FILES_NEED_A_FOLDER = cel(
    f"!has(self.files) || self.files.size() == 0 || !has(self.uri) || {FOLDER.format('self.uri')}",
    "files are chosen from a hf://datasets/ repository, a pvc:// folder or an s3:// prefix that ends in '/'; other "
    "uris name one file",
    ".files",
)
"""Used on every block with a dataset's uri and files."""

Revision = Annotated[
    str,
    Field(
        max_length=128,
        json_schema_extra=rules(
            cel(
                "self.matches('^[A-Za-z0-9][A-Za-z0-9._/-]*$') && !self.contains('..')",
                "revision must be a branch, tag or commit: letters, digits, '.', '_', '-' and '/', without '..'",
            )
        ),
    ),
]


class ModelSource(SpecModel):
    """The foundation model to fine-tune."""

    model_config = {"json_schema_extra": rules(REVISION_ONLY_HUB, PVC_NEEDS_NO_SECRET, MODEL_ENDPOINT)}

    uri: ModelURI = Field(
        description="hf://ORG/NAME, s3://BUCKET/PREFIX, oci://REGISTRY/REPOSITORY[:TAG] or pvc://CLAIM/PATH; weights "
        "must be safetensors."
    )
    endpoint: Endpoint = Field(
        default="",
        description="Address of the S3 service when it is not Amazon's, or of a registry that has no TLS, such as "
        "http://registry.tools.svc:5000.",
    )
    revision: Revision = Field(
        default="main",
        description="Branch, tag or commit of a hf:// repository. It is resolved to a commit once, shown in "
        "status.model.commit, and that commit is used to the end; so is the tag of an oci:// uri to a digest.",
    )
    credentials_secret: ResourceName = Field(
        default="",
        description="Secret of this namespace: key 'token' for hf://; 'accessKeyId', 'secretAccessKey' and optionally "
        "'sessionToken' for s3://; 'token' and optionally 'username' for oci://. Only the fetch pod has it.",
    )


ColumnName = Annotated[str, Field(max_length=128)]
FileGlob = Annotated[
    str,
    Field(
        max_length=256,
        json_schema_extra=rules(
            cel(
                "self.matches('^[A-Za-z0-9._=@+*?-]+(/[A-Za-z0-9._=@+*?-]+)*$') && !self.matches('(^|/)[.]{1,2}(/|$)')",
                "a file is named by a path below the uri, without '..', such as data/train-*.parquet",
            )
        ),
    ),
]


Digest = Annotated[
    str,
    Field(
        max_length=71,
        json_schema_extra=rules(
            cel(
                "self == '' || self.matches('^sha256:[0-9a-f]{64}$')",
                "digest is sha256: and 64 hexadecimal digits, as status.dataset.digest of an earlier job says it",
            )
        ),
    ),
]


class ColumnMap(SpecModel):
    """What the file calls the columns that a format reads; those that are left out keep their own name."""

    messages: ColumnName = Field(default="", description="Chat: the list of messages, such as conversations.")
    role: ColumnName = Field(
        default="", description="Within messages: who speaks; with from, human is user, gpt is assistant."
    )
    content: ColumnName = Field(default="", description="Within messages: what is said, such as value.")
    tools: ColumnName = Field(default="", description="Chat, preferences: the tools that may be called.")
    instruction: ColumnName = Field(default="", description="Instruction: what is asked.")
    input: ColumnName = Field(default="", description="Instruction: what the instruction is about; may be missing.")
    output: ColumnName = Field(default="", description="Instruction: the answer.")
    prompt: ColumnName = Field(default="", description="Completion, preferences: what comes before the answer.")
    completion: ColumnName = Field(default="", description="Completion, UnpairedPreference: the answer.")
    chosen: ColumnName = Field(default="", description="Preference: the better answer.")
    rejected: ColumnName = Field(default="", description="Preference: the worse answer.")
    text: ColumnName = Field(default="", description="Text, Classification: the text.")
    label: ColumnName = Field(default="", description="Classification: the class; UnpairedPreference: liked or not.")


class ValidationSplit(SpecModel):
    """The rows held out from training, on which base and tuned model are compared: a share of the rows, or files."""

    model_config = {
        "json_schema_extra": rules(
            PVC_NEEDS_NO_SECRET,
            FILES_NEED_A_FOLDER,
            cel(
                "!has(self.fraction) || ((!has(self.files) || self.files.size() == 0) && !has(self.uri))",
                "fraction holds out rows of the training files, files and uri name rows that are held out already: "
                "take one of the two",
                ".fraction",
            ),
            cel(
                "!has(self.endpoint) || self.endpoint == '' || (has(self.uri) && self.uri.startsWith('s3://'))",
                "endpoint goes with an s3:// uri in validation only; without one, files come from where the dataset is",
                ".endpoint",
            ),
            cel(
                "!has(self.credentialsSecret) || self.credentialsSecret == '' || has(self.uri)",
                "credentialsSecret goes with a uri in validation only; without one, files come from where the dataset "
                "is, with its Secret",
                ".credentialsSecret",
            ),
        )
    }

    fraction: Decimal | None = Field(
        default=None,
        description="Share of the rows held out, above 0 and at most 0.5, chosen by training.seed; 0.1 where nothing "
        "is named. Files whose name says validation or test are held out instead, where there are any.",
        json_schema_extra=rules(
            decimal_rule(
                "double(self) > 0.0 && double(self) <= 0.5",
                'fraction must be above 0 and at most 0.5, such as "0.1": evaluation needs rows never trained on',
            )
        ),
    )
    files: Annotated[list[FileGlob], Field(max_length=16)] | None = Field(
        default=None,
        description="Which files below the uri are held out, whatever they are called: paths or globs as in "
        "dataset.files. None of them is trained on, also where dataset.files names it too.",
    )
    uri: DatasetURI | None = Field(
        default=None,
        description="Where they are, if not below dataset.uri; the same forms. Without files all that can be read "
        "there, of a repository with splits its validation or test files.",
    )
    endpoint: Endpoint = Field(default="", description="Address of the uri's S3 service when it is not Amazon's.")
    credentials_secret: ResourceName = Field(
        default="", description="Secret of this namespace for the uri, with keys as in dataset.credentialsSecret."
    )

    @property
    def named(self) -> bool:
        """Whether files are held out, and no share of the rows."""
        return bool(self.files or self.uri)

    @property
    def share(self) -> str:
        """The share of the rows that is held out where no file is, a decimal number."""
        return self.fraction or DEFAULT_FRACTION


class DatasetSource(SpecModel):
    """The training data: files of rows, and what the rows are."""

    model_config = {
        "json_schema_extra": rules(
            PVC_NEEDS_NO_SECRET,
            cel(
                "!has(self.endpoint) || self.endpoint == '' || self.uri.startsWith('s3://')",
                "endpoint is the address of an S3 service and goes with an s3:// uri only; leave it out otherwise",
            ),
            FILES_NEED_A_FOLDER,
            cel(
                "!has(self.validation) || !has(self.validation.files) || self.validation.files.size() == 0 || "
                f"has(self.validation.uri) || {FOLDER.format('self.uri')}",
                "validation.files are chosen from the dataset's own uri, and this one names one file: name a folder "
                "(hf://datasets/, pvc://, or an s3:// prefix that ends in '/'), or a validation.uri",
                ".validation.files",
            ),
        )
    }

    uri: DatasetURI = Field(
        description="hf://datasets/ORG/NAME[/FILE], s3://BUCKET/KEY, s3://BUCKET/PREFIX/ (all objects below it), "
        "pvc://CLAIM/PATH or https://HOST/PATH."
    )
    endpoint: Endpoint = Field(
        default="",
        description="Address of the S3 service when it is not Amazon's, such as https://minio.example.com.",
    )
    digest: Digest = Field(
        default="",
        description="What the files must be; where they are not, the job is DatasetChanged before anything is trained. "
        "status.dataset.digest of an earlier job, and its manifest.json, say it. Empty: whatever is there.",
    )
    credentials_secret: ResourceName = Field(
        default="",
        description="Secret of this namespace: key 'token' for hf:// and https://; 'accessKeyId', 'secretAccessKey' "
        "and optionally 'sessionToken' for s3://. Only the fetch pod mounts it.",
    )
    service_account_name: ResourceName = Field(
        default="",
        description="Service account of the fetch pod, for clouds that give credentials by workload identity. Not in "
        "this release.",
    )
    files: Annotated[list[FileGlob], Field(max_length=16)] | None = Field(
        default=None,
        description="Which files below the uri: paths or globs (* and ? within a folder, ** over folders), such as "
        "data/train-*.parquet. Default: all that can be read. Which are for validation is told by their names, unless "
        "validation names them.",
    )
    format: Literal[
        "Auto", "Chat", "Instruction", "Completion", "Text", "Preference", "UnpairedPreference", "Classification"
    ] = Field(
        default="Auto",
        description="What a row is: Chat {messages, tools?}, Instruction {instruction, input?, output}, Completion "
        "{prompt, completion}, Text {text}, Preference {prompt?, chosen, rejected}, UnpairedPreference {prompt, "
        "completion, label}, Classification {text, label}. Auto looks at the first row; status.dataset.format says "
        "what it found.",
    )
    columns: ColumnMap | None = Field(
        default=None,
        description="Our names to the file's, such as {prompt: question, completion: answer}.",
    )
    # The default is the block's: with files or a uri, no fraction is filled in.
    validation: ValidationSplit = Field(
        default=ValidationSplit(fraction=DEFAULT_FRACTION), description="The held-out rows."
    )

    @property
    def column_names(self) -> dict[str, str]:
        """Our name to the file's, those that differ only."""
        return {ours: theirs for ours, theirs in (self.columns or ColumnMap()).to_dict().items() if theirs}
