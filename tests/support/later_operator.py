"""The operator of a later release, as far as tests need one: a field more with a default, and narrower bounds.

Run as ``python -m later_operator``. The blocks are replaced in the models, then the operator starts as ever.
"""

import runpy
from typing import Any

from pydantic import Field

from tuneloop_core.api.engine import EngineSettings
from tuneloop_core.api.finetunejob import FineTuneJob, FineTuneJobSpec
from tuneloop_core.api.modeldeployment import ModelDeployment, ModelDeploymentSpec

LONGEST = 100_000
MOST_RETRIES = 5


class LaterEngine(EngineSettings):
    """spec.engine of the later release."""

    speculative: bool = False
    max_model_length: int = Field(default=4096, ge=16, le=LONGEST)


def replace(model: Any, name: str, annotation: Any, default: Any) -> None:
    """Give a field of a model another type."""
    model.model_fields[name].annotation, model.model_fields[name].default = annotation, default
    model.model_rebuild(force=True)


if __name__ == "__main__":
    replace(ModelDeploymentSpec, "engine", LaterEngine, LaterEngine())
    ModelDeployment.model_rebuild(force=True)
    retries = FineTuneJobSpec.model_fields["retries"]
    retries.metadata = [Field(ge=0, le=MOST_RETRIES).metadata[0], Field(le=MOST_RETRIES).metadata[0]]
    FineTuneJobSpec.model_rebuild(force=True)
    FineTuneJob.model_rebuild(force=True)
    runpy.run_module("tuneloop_operator", run_name="__main__")
