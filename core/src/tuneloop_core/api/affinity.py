"""Kubernetes' own affinity shapes, with limits on every list.

Kept apart from ``pod.py`` because they are long and not ours: field names and meanings are those of core/v1. Never
holds anything that lets a pod do more, only where it runs.
"""

from typing import Annotated, Literal

from pydantic import Field

from tuneloop_core.api.base import SpecModel

_Key = Annotated[str, Field(max_length=317)]
_Value = Annotated[str, Field(max_length=63)]


class LabelRequirement(SpecModel):
    """One requirement on labels."""

    key: _Key = Field(description="The label's key.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(description="How key and values relate.")
    values: list[_Value] = Field(default=[], max_length=16, description="Values for In and NotIn; otherwise empty.")


class LabelSelector(SpecModel):
    """Selects objects by label; all requirements must hold."""

    match_labels: dict[str, _Value] = Field(default={}, max_length=16, description="Labels that must be equal.")
    match_expressions: list[LabelRequirement] = Field(default=[], max_length=8, description="Further requirements.")


class NodeRequirement(SpecModel):
    """One requirement on a node's labels or fields."""

    key: _Key = Field(description="The node label's (or field's) key.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"] = Field(
        description="How key and values relate."
    )
    values: list[_Value] = Field(default=[], max_length=16, description="Values; one for Gt and Lt, none for Exists.")


class NodeSelectorTerm(SpecModel):
    """Requirements that must all hold."""

    match_expressions: list[NodeRequirement] = Field(default=[], max_length=8, description="On the node's labels.")
    match_fields: list[NodeRequirement] = Field(default=[], max_length=4, description="On the node's fields.")


class NodeSelectorTerms(SpecModel):
    """Terms of which one must hold."""

    node_selector_terms: list[NodeSelectorTerm] = Field(min_length=1, max_length=4, description="One must hold.")


class PreferredNodeTerm(SpecModel):
    """A preference with a weight."""

    weight: int = Field(ge=1, le=100, description="How much a node that matches is preferred.")
    preference: NodeSelectorTerm = Field(description="What is preferred.")


class NodeAffinity(SpecModel):
    """Which nodes."""

    required_during_scheduling_ignored_during_execution: NodeSelectorTerms | None = Field(
        default=None, description="The pod runs only on nodes that match."
    )
    preferred_during_scheduling_ignored_during_execution: list[PreferredNodeTerm] = Field(
        default=[], max_length=4, description="Nodes that match are preferred."
    )


class PodAffinityTerm(SpecModel):
    """Near to, or away from, pods of this namespace."""

    topology_key: _Key = Field(description="The node label that says what near means, such as kubernetes.io/hostname.")
    label_selector: LabelSelector = Field(description="Which pods.")


class WeightedPodAffinityTerm(SpecModel):
    """A preference with a weight."""

    weight: int = Field(ge=1, le=100, description="How much a node that matches is preferred.")
    pod_affinity_term: PodAffinityTerm = Field(description="What is preferred.")


class PodAffinity(SpecModel):
    """Near to, or away from, which pods."""

    required_during_scheduling_ignored_during_execution: list[PodAffinityTerm] = Field(
        default=[], max_length=4, description="The pod runs only where all of these hold."
    )
    preferred_during_scheduling_ignored_during_execution: list[WeightedPodAffinityTerm] = Field(
        default=[], max_length=4, description="Nodes where these hold are preferred."
    )


class Affinity(SpecModel):
    """Where the pod should run; core/v1 Affinity within this namespace."""

    node_affinity: NodeAffinity | None = Field(default=None, description="Which nodes.")
    pod_affinity: PodAffinity | None = Field(default=None, description="Near to which pods.")
    pod_anti_affinity: PodAffinity | None = Field(default=None, description="Away from which pods.")
