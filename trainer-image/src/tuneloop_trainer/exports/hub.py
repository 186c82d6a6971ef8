"""``hf://ORG/NAME``: the artifact as one commit of a hub's model repository.

huggingface_hub uploads the files first and then makes one commit, so readers see the old or the new artifact, never
half of one; equal files are not sent again, and an equal folder makes no commit. A repository that is missing is made
private: nothing becomes public that was not.
"""

from pathlib import Path

import httpx2
from huggingface_hub.errors import HfHubHTTPError

from tuneloop_trainer.exports.failures import ExportError, http_change, is_transient
from tuneloop_trainer.files import sealed_digest
from tuneloop_trainer.hub import Hub

KEY = "token"


def export_to_hub(artifact: Path, repository: str, hub: Hub) -> str:
    """Upload the artifact; returns ``hf://ORG/NAME@COMMIT``."""
    message = f"Tuneloop artifact {sealed_digest(artifact)}"
    try:
        commit = hub.upload_model(repository, artifact, message)
    except (HfHubHTTPError, RuntimeError, ValueError) as error:
        raise _refusal(error, repository, hub) from error
    return f"hf://{repository}@{commit}"


def _refusal(error: Exception, repository: str, hub: Hub) -> ExportError:
    """The hub client wraps what an upload of a large file met; the cause says more."""
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
    if isinstance(cause, httpx2.TransportError):
        raise cause
    response = getattr(cause, "response", None)
    if response is None:
        return ExportError(f"{hub.endpoint} gave an answer that does not fit: {cause}", "Look into the hub's log")
    status = int(response.status_code)
    words = response.headers.get("X-Error-Message") or getattr(cause, "server_message", None) or response.reason_phrase
    change = http_change(status, KEY, f"the organisation of {repository}")
    return ExportError(f"{hub.endpoint} said {status}: {words}", change, transient=is_transient(status))
