"""A copy of the artifact elsewhere: ``spec.output.uri`` of a FineTuneJob.

Whatever the target, a copy is whole or does not look whole: what says "done" (a folder's name, ``manifest.json``, a
tag, a commit) is written last and in one piece. A second run of the same export changes nothing. Every failure names
the URI, what the server said and what to change; the artifact in the store is never touched.
"""

import logging
from pathlib import Path

from tuneloop_core.api.finetunejob import Output
from tuneloop_core.uris import ClaimPath, HubModel, OCIReference, S3Object, parse_output_uri

from tuneloop_trainer.download import S3Credentials
from tuneloop_trainer.exports.claim import export_to_claim
from tuneloop_trainer.exports.failures import failures_named
from tuneloop_trainer.exports.hub import export_to_hub
from tuneloop_trainer.exports.oci import export_to_registry
from tuneloop_trainer.exports.registry import RegistryLogin
from tuneloop_trainer.exports.s3 import export_to_s3
from tuneloop_trainer.guard import AddressGuard
from tuneloop_trainer.hub import Hub
from tuneloop_trainer.paths import Paths

log = logging.getLogger("tuneloop")


def export(artifact: Path, output: Output, paths: Paths, guard: AddressGuard, hub_endpoint: str = "") -> str:
    """Copy a sealed artifact to ``output.uri``; returns the URI of this very copy. Raises ``StageError``."""
    log.info("exporting to %s", output.uri)
    with failures_named(output):
        copied = _export(artifact, output, paths, guard, hub_endpoint)
    log.info("exported to %s", copied)
    return copied


def _export(artifact: Path, output: Output, paths: Paths, guard: AddressGuard, hub_endpoint: str) -> str:
    def secret(key: str) -> str:
        return paths.secret("output", key)

    match parse_output_uri(output.uri):
        case ClaimPath(claim, path):
            return export_to_claim(artifact, paths.claim("output"), claim, path)
        case S3Object() as place:
            credentials = S3Credentials(secret("accessKeyId"), secret("secretAccessKey"), secret("sessionToken"))
            return export_to_s3(artifact, place, output.endpoint, credentials, guard)
        case OCIReference() as reference:
            login = RegistryLogin(secret("username"), secret("token"))
            return export_to_registry(artifact, reference, output.endpoint, login, guard)
        case HubModel(repo):
            return export_to_hub(artifact, repo, Hub(hub_endpoint, secret("token"), guard))
        case other:
            raise TypeError(f"no export to {other}")
