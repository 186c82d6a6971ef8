"""Files below ``s3://BUCKET/PREFIX/``, of models and datasets alike: one listing, and the objects that are in it.

Objects arrive in ranges, several at a time: what memory holds does not follow a file's size, and a connection that
breaks costs one range. Each range asks for the ETag that was listed, so an object that changes meanwhile ends the
attempt. Keys become paths, so one that leads out of its folder is refused. Nothing is loaded.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from tuneloop_core.stages import Reason

from tuneloop_trainer.download import About, S3Credentials
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.files import gib
from tuneloop_trainer.guard import AddressGuard
from tuneloop_trainer.s3 import s3_client

log = logging.getLogger("tuneloop")

RANGE_BYTES = 16 * 2**20
PARALLEL = 4  # ranges under way, each held in memory
MOST_OBJECTS = 100_000  # in one listing
FEW_FILES = 20  # named one by one in the log
NAME_BYTES = 255  # of a part of a path, by the file system


@dataclass(frozen=True)
class S3File:
    """One object: its key without the prefix, its size in bytes, and what S3 says of its content."""

    name: str
    size: int
    etag: str


class S3Folder:
    """One prefix of one bucket; ``about`` says what it holds, for reasons and words."""

    def __init__(self, uri: str, endpoint: str, credentials: S3Credentials, guard: AddressGuard, about: About) -> None:
        self.uri = uri
        self.bucket, _, key = uri.removeprefix("s3://").partition("/")
        self.prefix = key.strip("/") + "/"
        self._about, self._block = about, about.field.removesuffix(".uri")
        self._client = s3_client(endpoint, credentials, guard)

    def listing(self, delimiter: str = "") -> list[S3File]:
        """What lies below the prefix, by name, and right below it with ``/``; raises ``StageError`` for nothing."""
        found: list[S3File] = []
        with self._refusals():
            asked = self._client.get_paginator("list_objects_v2")
            for page in asked.paginate(Bucket=self.bucket, Prefix=self.prefix, Delimiter=delimiter):
                found += self._files(page)
                if len(found) > MOST_OBJECTS:
                    raise self._too_many()
        if not found:
            words = f"{self.uri}: nothing lies below this prefix. Check {self._about.field}."
            raise StageError(self._about.missing, words)
        return sorted(found, key=lambda each: each.name)

    def download(self, files: Sequence[S3File], folder: Path) -> None:
        """Put the files into a folder under their names; raises ``StageError`` when one changed since the listing."""
        self._require_paths([each.name for each in files])
        for each in files:
            (folder / each.name).parent.mkdir(parents=True, exist_ok=True)
            (folder / each.name).touch()
            if len(files) <= FEW_FILES:
                log.info("%s: fetching %s, %s", self.uri, each.name, gib(each.size))
        pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="s3")
        try:
            ranges = ((each, start) for each in files for start in range(0, each.size, RANGE_BYTES))
            for done in as_completed([pool.submit(self._range, each, start, folder) for each, start in ranges]):
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)
        log.info("%s: %d files, %s", self.uri, len(files), gib(sum(each.size for each in files)))

    def _files(self, page: dict[str, Any]) -> Iterator[S3File]:
        """The objects of a page; a key that ends in ``/`` is what consoles make of an empty folder."""
        for item in page.get("Contents", []):
            if not item["Key"].endswith("/"):
                yield S3File(item["Key"].removeprefix(self.prefix), item["Size"], item["ETag"])

    def _range(self, file: S3File, start: int, folder: Path) -> None:
        end = min(start + RANGE_BYTES, file.size)
        place = {"Bucket": self.bucket, "Key": f"{self.prefix}{file.name}", "IfMatch": file.etag}
        with self._refusals():
            data = self._client.get_object(**place, Range=f"bytes={start}-{end - 1}")["Body"].read()
        if len(data) != end - start:
            raise self._changed(f"{file.name} changed while it was read")
        with (folder / file.name).open("r+b") as stream:
            stream.seek(start)
            stream.write(data)

    def _require_paths(self, names: Iterable[str]) -> None:
        """Refuse keys that no file below a folder can have, and a key that is another's folder."""
        known = set(names)
        for name in sorted(known):
            if not is_path(name):
                words = (
                    f"{self.uri}: the key {name!r} below it is no path of a file ('..', '.' or '' in it, or too long)"
                )
                raise StageError(Reason.URI_REFUSED, f"{words}: rename the object, or choose others by name.")
            if above := known.intersection(map(str, PurePosixPath(name).parents)):
                words = f"{self.uri}: {above.pop()} is a file, and {name} lies below it; a folder cannot have both"
                raise StageError(self._about.unfit, f"{words}: rename one, or choose others by name.")

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """What S3 refused, as a reason."""
        try:
            yield
        except ClientError as error:
            raise self._refusal(error) from error
        except BotoCoreError as error:
            words = f"{self.uri} could not be read ({error}); check {self._block}.endpoint. It will be tried again."
            raise StageError(Reason.HUB_UNAVAILABLE, words) from error

    def _refusal(self, error: ClientError) -> StageError:
        said: dict[str, Any] = error.response.get("Error", {})
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        words = f"{self.uri}: the server said {said.get('Code', '')}: {said.get('Message', '')}".rstrip(": ")
        if status in (401, 403):
            keys = f"check accessKeyId and secretAccessKey of {self._block}.credentialsSecret"
            return StageError(Reason.ACCESS_DENIED, f"{words} ({status}): {keys}, and that they may list and read.")
        if status == 404 and said.get("Code") == "NoSuchKey":
            return self._changed("a file that was listed is gone")
        if status == 404:
            return StageError(self._about.missing, f"{words} ({status}). Check the bucket in {self._about.field}.")
        if status == 412:
            return self._changed("a file changed while it was read")
        if status >= 500 or status in (408, 429):
            return StageError(Reason.HUB_UNAVAILABLE, f"{words} ({status}); it will be tried again.")
        change = f"Check {self._about.field} and {self._block}.endpoint."
        return StageError(self._about.missing, f"{words} ({status}). {change}")

    def _changed(self, what: str) -> StageError:
        words = f"{self.uri}: {what}; it will be tried again with what is there then."
        return StageError(Reason.HUB_UNAVAILABLE, words)

    def _too_many(self) -> StageError:
        words = f"{self.uri}: more than {MOST_OBJECTS} objects lie below this prefix: name a longer one"
        return StageError(self._about.unfit, f"{words} in {self._about.field}.")


def is_path(name: str) -> bool:
    """Whether a key is a relative path that leads downwards, in parts that a file system takes."""
    parts = name.split("/")
    fits = all(part not in ("", ".", "..") and len(part.encode()) <= NAME_BYTES for part in parts)
    return fits and name.isprintable()
