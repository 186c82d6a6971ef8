"""Where the loss curve and scores of a finished job are also told: an experiment tracker of the company's own.

Told once, at publish, from the file that training wrote: the train pod reaches no server. Never decides anything; a
tracker that is down costs the job nothing.
"""

from pydantic import Field

from tuneloop_core.api.base import SpecModel
from tuneloop_core.api.formats import ResourceName
from tuneloop_core.api.sources import Endpoint


class MLflowTracking(SpecModel):
    """A run of an MLflow server, by its REST API."""

    endpoint: Endpoint = Field(
        min_length=1, description="Address of the tracking server, such as http://mlflow.tools.svc:5000."
    )
    experiment: str = Field(
        default="",
        max_length=128,
        description="Name of the experiment; made where it is missing. Default: tuneloop/NAMESPACE.",
    )
    credentials_secret: ResourceName = Field(
        default="",
        description="Secret of this namespace: 'token' (bearer), or 'username' and 'password'. Only the publish pod "
        "mounts it.",
    )


class Tracking(SpecModel):
    """Trackers that the job is told to when it is published."""

    mlflow: MLflowTracking = Field(description="An MLflow server.")
