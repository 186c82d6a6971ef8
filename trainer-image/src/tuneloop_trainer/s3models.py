"""Models from ``s3://BUCKET/PREFIX``: the files right below the prefix, as they are in one listing.

The listing's names, sizes and ETags are the version: an equal listing is not downloaded again. Nothing is loaded.
"""

import hashlib
import json
from pathlib import Path

from tuneloop_core.api.sources import ModelSource
from tuneloop_core.stages import Reason

from tuneloop_trainer.download import About, S3Credentials
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.guard import AddressGuard
from tuneloop_trainer.hub import is_wanted
from tuneloop_trainer.s3files import S3File, S3Folder

INDEX = "model.safetensors.index.json"
ABOUT = About(missing=Reason.MODEL_NOT_FOUND, unfit=Reason.MODEL_UNSUPPORTED, field="model.uri")


class S3Model:
    """One prefix of one bucket."""

    def __init__(self, model: ModelSource, credentials: S3Credentials, guard: AddressGuard) -> None:
        self._uri, self._endpoint = model.uri, model.endpoint
        self._folder = S3Folder(model.uri, model.endpoint, credentials, guard, ABOUT)

    def listing(self) -> list[S3File]:
        """The files that a text model needs, by name; raises ``StageError`` where there is no model."""
        listed = [each for each in self._folder.listing("/") if is_wanted(each.name)]
        if not any(each.name.endswith(".safetensors") for each in listed):
            raise StageError(Reason.MODEL_UNSUPPORTED, f"{self._uri} has no .safetensors weights right below it.")
        return listed

    def version(self, listed: list[S3File]) -> str:
        """A digest, hex, that changes when a file, the place or the server does."""
        files = [(each.name, each.size, each.etag) for each in listed]
        text = json.dumps([self._endpoint, self._folder.bucket, self._folder.prefix, files])
        return hashlib.sha256(text.encode()).hexdigest()

    def download(self, listed: list[S3File], folder: Path) -> None:
        """All files; raises ``StageError`` when one changed since it was listed or a shard of the index is missing."""
        self._folder.download(listed, folder)
        self._require_shards(folder)

    def _require_shards(self, folder: Path) -> None:
        """An upload that is still under way has its index, perhaps, and not all of its shards."""
        if not (folder / INDEX).is_file():
            return
        try:
            shards = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise StageError(Reason.MODEL_UNSUPPORTED, f"{self._uri}: {INDEX} is no index of weights.") from None
        if missing := sorted(shard for shard in shards if not (folder / shard).is_file()):
            words = f"{self._uri} lacks {missing[0]}, which its {INDEX} names ({len(missing)} files are missing)"
            raise StageError(Reason.MODEL_NOT_FOUND, f"{words}: is the upload finished?")
