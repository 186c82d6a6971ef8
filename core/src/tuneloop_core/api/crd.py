"""The two CustomResourceDefinitions: names, columns, subresources, and the rules that span a whole spec.

Pure: models in, manifests out. Never writes a file; ``generate.py`` does.
"""

from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from tuneloop_core.api.base import VALIDATIONS, cel
from tuneloop_core.api.finetunejob import MUTABLE_FIELDS, FineTuneJob, FineTuneJobSpec
from tuneloop_core.api.modeldeployment import ModelDeployment
from tuneloop_core.api.release import FINETUNEJOB_LATER
from tuneloop_core.api.schema import Schema, structural_schema
from tuneloop_core.constants import (
    FINETUNEJOB_KIND,
    FINETUNEJOB_PLURAL,
    GROUP,
    MODELDEPLOYMENT_KIND,
    MODELDEPLOYMENT_PLURAL,
    VERSION,
)

Rule = dict[str, str]

NAME_RULE: Final = cel(
    "self.metadata.name.matches('^[a-z]([-a-z0-9]{0,48}[a-z0-9])?$')",
    "metadata.name must be at most 50 lower-case letters, digits and '-', beginning with a letter: Jobs and Services "
    "are named after it",
)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a CRD says besides its model."""

    name: str
    plural: str
    short_name: str
    model: type[BaseModel]
    columns: tuple[dict[str, Any], ...]
    spec_rules: tuple[Rule, ...] = ()
    scale: dict[str, str] | None = None


def _column(name: str, path: str, kind: str = "string", description: str = "", priority: int = 0) -> dict[str, Any]:
    """A column of ``kubectl get``; priority 1 shows it with ``-o wide`` only."""
    column: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path}
    if description:
        column["description"] = description
    return column | {"priority": priority} if priority else column


def _ready(part: str) -> str:
    return f'.status.conditions[?(@.type=="Ready")].{part}'


def immutable_but(model: type[BaseModel], mutable: tuple[str, ...]) -> Rule:
    """One transition rule on the parent, so that a block that is added or removed is seen too."""
    fixed = [field.alias or name for name, field in model.model_fields.items() if name not in mutable]
    same = " && ".join(
        f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"
        for field in fixed
    )
    return cel(
        same,
        f"the spec is fixed but for {', '.join(mutable)}: a result belongs to one spec; make a new job, name it -v2",
    )


FINETUNEJOB: Final = Kind(
    name=FINETUNEJOB_KIND,
    plural=FINETUNEJOB_PLURAL,
    short_name="ftj",
    model=FineTuneJob,
    spec_rules=(immutable_but(FineTuneJobSpec, MUTABLE_FIELDS), *FINETUNEJOB_LATER),
    columns=(
        _column("Stage", ".status.stage", description="Where the job is."),
        _column("Percent", ".status.progress.percent", "integer", "Of the train stage."),
        _column("Loss", ".status.progress.loss", "number", "Training loss of the last step."),
        _column("Tokens/s", ".status.progress.tokensPerSecond", "number", "Real tokens, padding excluded."),
        _column("ETA", ".status.progress.eta", description="Time left of the train stage."),
        _column("Ready", _ready("status"), description="True once the artifact is published."),
        _column("Reason", _ready("reason"), description="Why it is or is not."),
        _column("Model", ".spec.model.uri", description="The foundation model.", priority=1),
        _column("Message", _ready("message"), description="What was found and what to do next.", priority=1),
        _column("Age", ".metadata.creationTimestamp", "date"),
    ),
)

MODELDEPLOYMENT: Final = Kind(
    name=MODELDEPLOYMENT_KIND,
    plural=MODELDEPLOYMENT_PLURAL,
    short_name="mdep",
    model=ModelDeployment,
    scale={
        "specReplicasPath": ".spec.scaling.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    },
    columns=(
        _column("Ready", _ready("status"), description="Whether it answers."),
        _column("Reason", _ready("reason"), description="Why it does or does not."),
        _column("Replicas", ".status.readyReplicas", "integer", "Replicas that answer."),
        _column("URL", ".status.url", description="The OpenAI base URL."),
        _column("TTFT-P95", ".status.latency.ttftP95", description="Time to first token, 95th percentile."),
        _column("TPOT-P95", ".status.latency.tpotP95", description="Time per output token, 95th percentile."),
        _column("Rollout", ".status.rollout.phase", description="Of the new version: Loading, Canary, RolledBack ..."),
        _column("Weight", ".status.rollout.weight", "integer", "Percent that the new version gets.", priority=1),
        _column("Model", ".spec.model.uri", description="The base model.", priority=1),
        _column("Message", _ready("message"), description="What was found and what to do next.", priority=1),
        _column("Age", ".metadata.creationTimestamp", "date"),
    ),
)

KINDS: Final = (FINETUNEJOB, MODELDEPLOYMENT)


def _open_api_schema(kind: Kind) -> Schema:
    """The schema of the whole object: metadata is the API server's, status begins as not yet looked at."""
    schema = structural_schema(kind.model)
    properties = schema["properties"]
    properties["apiVersion"] = {"description": f"{GROUP}/{VERSION}", "type": "string"}
    properties["kind"] = {"description": kind.name, "type": "string"}
    # The API server checks names itself; the bound is for the cost of rules on the name.
    properties["metadata"] = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 253}}}
    properties["spec"][VALIDATIONS] = [*properties["spec"].get(VALIDATIONS, []), *kind.spec_rules]
    properties["status"] = _without_defaults(properties["status"]) | {"default": {"observedGeneration": -1}}
    return schema | {"required": ["spec"], VALIDATIONS: [NAME_RULE, *schema.get(VALIDATIONS, [])]}


def _without_defaults(node: Schema) -> Schema:
    """A status is stored as the operator wrote it: a default filled in would look like a change to write again."""
    result = {key: value for key, value in node.items() if key != "default"}
    if "properties" in node:
        result["properties"] = {name: _without_defaults(child) for name, child in node["properties"].items()}
    if "items" in node:
        result["items"] = _without_defaults(node["items"])
    return result


def manifest(kind: Kind) -> dict[str, Any]:
    """The CustomResourceDefinition."""
    subresources: dict[str, Any] = {"status": {}}
    if kind.scale:
        subresources["scale"] = kind.scale
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": [kind.short_name],
                "categories": ["tuneloop"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": subresources,
                    "additionalPrinterColumns": list(kind.columns),
                    "schema": {"openAPIV3Schema": _open_api_schema(kind)},
                }
            ],
        },
    }
