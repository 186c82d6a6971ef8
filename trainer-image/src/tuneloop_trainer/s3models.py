"""Models from ``s3://BUCKET/PREFIX``: the files right below the prefix, as they are in one listing.

The listing's names, sizes and ETags are the version: an equal listing is not downloaded again, and a file that changes
while it is read ends the attempt. Read in ranges, so that memory does not follow a file's size. Nothing is loaded.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from tuneloop_core.api.sources import ModelSource
from tuneloop_core.stages import Reason
from tuneloop_core.uris import S3Object

from tuneloop_trainer.download import S3Credentials
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.files import gib
from tuneloop_trainer.guard import AddressGuard
from tuneloop_trainer.hub import is_wanted
from tuneloop_trainer.s3 import s3_client

log = logging.getLogger("tuneloop")

RANGE_BYTES = 32 * 2**20  # held in memory
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Listed:
    """One file of the model: its size in bytes, and what S3 says of its content."""

    name: str
    size: int
    etag: str


class S3Model:
    """One prefix of one bucket."""

    def __init__(self, model: ModelSource, place: S3Object, credentials: S3Credentials, guard: AddressGuard) -> None:
        self._uri, self._endpoint = model.uri, model.endpoint
        self._bucket, self._prefix = place.bucket, place.key.strip("/") + "/"
        self._client = s3_client(model.endpoint, credentials, guard)

    def listing(self) -> list[Listed]:
        """The files that a text model needs, by name; raises ``StageError`` where there is no model."""
        with self._refusals():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"
            )
            found = [item for page in pages for item in page.get("Contents", [])]
        named = ((item["Key"].removeprefix(self._prefix), item) for item in found)
        listed = [Listed(name, item["Size"], item["ETag"]) for name, item in named if is_wanted(name)]
        if not found:
            raise StageError(Reason.MODEL_NOT_FOUND, f"{self._uri}: nothing lies below this prefix. Check model.uri.")
        if not any(each.name.endswith(".safetensors") for each in listed):
            raise StageError(Reason.MODEL_UNSUPPORTED, f"{self._uri} has no .safetensors weights right below it.")
        return sorted(listed, key=lambda each: each.name)

    def version(self, listed: list[Listed]) -> str:
        """A digest, hex, that changes when a file, the place or the server does."""
        files = [(each.name, each.size, each.etag) for each in listed]
        text = json.dumps([self._endpoint, self._bucket, self._prefix, files])
        return hashlib.sha256(text.encode()).hexdigest()

    def download(self, listed: list[Listed], folder: Path) -> None:
        """All files; raises ``StageError`` when one changed since it was listed or a shard of the index is missing."""
        for each in listed:
            with self._refusals():
                self._get(each, folder / each.name)
            log.info("%s: %s, %s", self._uri, each.name, gib(each.size))
        self._require_shards(folder)

    def _get(self, listed: Listed, target: Path) -> None:
        place = {"Bucket": self._bucket, "Key": f"{self._prefix}{listed.name}", "IfMatch": listed.etag}
        with target.open("wb") as stream:
            for start in range(0, listed.size, RANGE_BYTES):
                last = min(start + RANGE_BYTES, listed.size) - 1
                stream.write(self._client.get_object(**place, Range=f"bytes={start}-{last}")["Body"].read())
        if target.stat().st_size != listed.size:
            raise self._changed(listed.name)

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

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """What S3 refused, as a reason."""
        try:
            yield
        except ClientError as error:
            raise self._refusal(error) from error
        except BotoCoreError as error:
            words = f"{self._uri} could not be read ({error}); check model.endpoint. It will be tried again."
            raise StageError(Reason.HUB_UNAVAILABLE, words) from error

    def _refusal(self, error: ClientError) -> StageError:
        said: dict[str, Any] = error.response.get("Error", {})
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        words = f"{self._uri}: the server said {said.get('Code', '')}: {said.get('Message', '')}".rstrip(": ")
        if status in (401, 403):
            change = "check accessKeyId and secretAccessKey of model.credentialsSecret, and that they may list and read"
            return StageError(Reason.ACCESS_DENIED, f"{words} ({status}): {change}.")
        if status == 404:
            return StageError(Reason.MODEL_NOT_FOUND, f"{words} ({status}). Check the bucket in model.uri.")
        if status == 412:
            return self._changed("a file")
        if status >= 500 or status in (408, 429):
            return StageError(Reason.HUB_UNAVAILABLE, f"{words} ({status}); it will be tried again.")
        return StageError(Reason.MODEL_NOT_FOUND, f"{words} ({status}). Check model.uri and model.endpoint.")

    def _changed(self, what: str) -> StageError:
        words = f"{self._uri}: {what} changed while it was read; it will be tried again with what is there then."
        return StageError(Reason.HUB_UNAVAILABLE, words)
