"""The two base classes of the API's models and the one way to attach a CEL rule.

A spec refuses unknown keys, so that a typo is told; a status ignores them, so that an older part can read what a
newer one wrote. Never holds a field of its own.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

VALIDATIONS = "x-kubernetes-validations"


class SpecModel(BaseModel):
    """A block that users write: camelCase outside, snake_case inside, frozen, unknown keys refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    def to_dict(self) -> dict[str, Any]:
        """The block as the API server holds it: camelCase, defaults filled, absent optional fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def without_defaults(self) -> dict[str, Any]:
        """What differs from the defaults: what a digest is made of, and what an older part is told.

        A field that a later release adds is absent until somebody sets it, so it changes no digest.
        """
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)


class StatusModel(BaseModel):
    """A block that the operator writes: camelCase outside, frozen, unknown keys ignored."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    def to_dict(self) -> dict[str, Any]:
        """The block as it goes into ``status``: camelCase, absent fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def cel(rule: str, message: str, field_path: str = "") -> dict[str, str]:
    """One entry of ``x-kubernetes-validations``; the message says what is allowed, not only what is wrong.

    ``field_path`` (such as ``.output``) is the child that the error is shown at, relative to where the rule stands.
    """
    entry = {"rule": rule, "message": message}
    return entry | {"fieldPath": field_path} if field_path else entry


def rules(*entries: dict[str, str]) -> dict[str, Any]:
    """``json_schema_extra`` of a model or a field that carries these CEL rules."""
    return {VALIDATIONS: list(entries)}
