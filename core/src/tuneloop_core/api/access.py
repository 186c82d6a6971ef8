"""Who may call a ModelDeployment.

The resource holds hashes of keys only, so that GitOps can carry it and nobody needs to read a Secret. Never a key.
"""

from typing import Annotated

from pydantic import Field

from tuneloop_core.api.base import SpecModel, cel, rules

_KEY_HASH_RULE = cel(
    "self.matches('^sha256:[0-9a-f]{64}$')",
    "hash must be sha256: and 64 lower-case hex digits, the SHA-256 of the key; never the key itself",
)
_MODEL_NAME_RULE = cel(
    "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
    "must be the name of this deployment or of one of its adapters",
)
_KEY_NAME_RULE = cel(
    "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
    "a key's name is lower-case letters, digits and '-', such as app-1",
)


class AccessKey(SpecModel):
    """One application's key."""

    name: str = Field(
        max_length=63,
        description="Name of the key's holder, in logs and metrics.",
        json_schema_extra=rules(_KEY_NAME_RULE),
    )
    hash: str = Field(
        max_length=71,
        description='"sha256:" and the hex SHA-256 of the key; keys are 256 random bits.',
        json_schema_extra=rules(_KEY_HASH_RULE),
    )
    models: list[Annotated[str, Field(max_length=63, json_schema_extra=rules(_MODEL_NAME_RULE))]] = Field(
        default=[],
        max_length=64,
        description="Names of this deployment's base and adapters that the key opens; empty opens all of them.",
    )


class AccessLimits(SpecModel):
    """Limits per key, over all gateways: each of N ready ones gives out 1/N."""

    requests_per_minute: int | None = Field(
        default=None, ge=1, le=10_000_000, description="Requests a minute; as many may come at once."
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000_000,
        description="Prompt and answer tokens a minute. A request reserves what it asks for; its usage settles it.",
    )


class Access(SpecModel):
    """Without this block the deployment is closed, unless the chart says otherwise."""

    keys: list[AccessKey] = Field(
        default=[],
        max_length=256,
        description="Keys that open it.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    limits: AccessLimits = Field(default=AccessLimits(), description="Limits of each key; 429 beyond them.")
