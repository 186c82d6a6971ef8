"""Conditions and metadata, shared by both kinds.

Conditions follow kstatus: Ready, Reconciling (absent when calm), Stalled (only when a person must act). Never decides
a condition: that is the operator's policy.
"""

from typing import Literal

from pydantic import Field

from tuneloop_core.api.base import StatusModel
from tuneloop_core.api.formats import Timestamp


class Condition(StatusModel):
    """meta/v1 Condition."""

    type: str = Field(max_length=64, description="Ready, Reconciling, Stalled, Complete, Failed, Suspended or a stage.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether the condition holds.")
    observed_generation: int | None = Field(
        default=None, ge=0, description="The metadata.generation that this condition is about."
    )
    last_transition_time: Timestamp = Field(description="When status last changed.")
    reason: str = Field(max_length=128, description="A constant in CamelCase, for programs.")
    message: str = Field(
        default="", max_length=1024, description="What was found, what would be right and what to do next, for people."
    )


class ObjectMeta(StatusModel):
    """The part of metadata that Tuneloop reads."""

    name: str = Field(description="Name, unique in the namespace.")
    namespace: str = Field(default="", description="Namespace.")
    uid: str = Field(default="", description="Unique for all time; owner references carry it.")
    generation: int = Field(default=0, description="Counts changes of the spec.")
    resource_version: str = Field(default="", description="Changes with every write.")
    creation_timestamp: str = Field(default="", description="RFC 3339.")
    deletion_timestamp: str | None = Field(default=None, description="RFC 3339; set once deletion has begun.")
    labels: dict[str, str] = Field(default={}, description="Labels.")
    annotations: dict[str, str] = Field(default={}, description="Annotations.")
