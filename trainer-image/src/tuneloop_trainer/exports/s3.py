"""``s3://BUCKET/PREFIX``: the artifact's files below ``PREFIX/DIGEST/``, ``manifest.json`` last.

A copy is whole exactly when its manifest is there. Large files go in parts, which become an object only when all have
arrived; a file that lies there already with the same digest is not sent again.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from tuneloop_core.uris import S3Object

from tuneloop_trainer.download import S3Credentials
from tuneloop_trainer.exports.failures import ExportError, http_change, is_transient
from tuneloop_trainer.files import file_digest, sealed_digest
from tuneloop_trainer.guard import AddressGuard
from tuneloop_trainer.s3 import s3_client

log = logging.getLogger("tuneloop")

PART_BYTES = 16 * 2**20  # held in memory; S3 takes 5 MiB to 5 GiB
MOST_PARTS = 10_000
DIGEST_METADATA = "tuneloop-sha256"
LAST = "manifest.json"
KEYS = "accessKeyId and secretAccessKey"


def export_to_s3(
    artifact: Path, place: S3Object, endpoint: str, credentials: S3Credentials, guard: AddressGuard
) -> str:
    """Upload the artifact; returns ``s3://BUCKET/PREFIX/DIGEST``."""
    bucket = place.bucket
    key = f"{place.key.strip('/')}/{sealed_digest(artifact).removeprefix('sha256:')}"
    try:
        target = _Bucket(s3_client(endpoint, credentials, guard), bucket)
        for path in _in_order(artifact):
            target.put(path, f"{key}/{path.relative_to(artifact).as_posix()}")
    except ClientError as error:
        raise _refusal(error, bucket) from error
    except BotoCoreError as error:
        change = "Check output.endpoint and that this namespace's pods may reach it; it is tried again"
        raise ExportError(f"{error}", change, transient=True) from error
    return f"s3://{bucket}/{key}"


def _in_order(artifact: Path) -> list[Path]:
    """All files, the one that says "whole" at the end."""
    files = sorted(path for path in artifact.rglob("*") if path.is_file())
    return sorted(files, key=lambda path: path == artifact / LAST)


class _Bucket:
    """One bucket that files are put into."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def put(self, path: Path, key: str) -> None:
        """Upload one file unless the same lies there."""
        digest = file_digest(path)
        if self._holds(key, path.stat().st_size, digest):
            log.info("%s is there already", key)
            return
        place = {"Bucket": self._bucket, "Key": key}
        if path.stat().st_size <= PART_BYTES:
            self._client.put_object(**place, Body=path.read_bytes(), Metadata={DIGEST_METADATA: digest})
        else:
            self._put_parts(path, place, digest)
        log.info("uploaded %s", key)

    def _holds(self, key: str, size: int, digest: str) -> bool:
        try:
            found = self._client.head_object(Bucket=self._bucket, Key=key)
        except ClientError:  # missing, or not ours to look at: the upload itself tells
            return False
        return bool(found["ContentLength"] == size and found.get("Metadata", {}).get(DIGEST_METADATA) == digest)

    def _put_parts(self, path: Path, place: dict[str, str], digest: str) -> None:
        self._drop_unfinished(place)
        begun = self._client.create_multipart_upload(**place, Metadata={DIGEST_METADATA: digest})
        upload = {**place, "UploadId": begun["UploadId"]}
        try:
            parts = [self._put_part(upload, number, data) for number, data in enumerate(_chunks(path), start=1)]
            self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        except BaseException:
            with suppress(ClientError, BotoCoreError):
                self._client.abort_multipart_upload(**upload)
            raise

    def _put_part(self, upload: dict[str, str], number: int, data: bytes) -> dict[str, Any]:
        answer = self._client.upload_part(**upload, PartNumber=number, Body=data)
        return {"PartNumber": number, "ETag": answer["ETag"]}

    def _drop_unfinished(self, place: dict[str, str]) -> None:
        """Parts of an export that died: they cost money and nobody sees them. Not every key may list them."""
        with suppress(ClientError):
            found = self._client.list_multipart_uploads(Bucket=place["Bucket"], Prefix=place["Key"])
            for upload in found.get("Uploads", []):
                if upload["Key"] == place["Key"]:
                    self._client.abort_multipart_upload(**place, UploadId=upload["UploadId"])


def _chunks(path: Path) -> Iterator[bytes]:
    size = max(PART_BYTES, math.ceil(path.stat().st_size / MOST_PARTS))
    with path.open("rb") as stream:
        while data := stream.read(size):
            yield data


_CHANGES = {
    "NoSuchBucket": "Make the bucket {bucket}, which never happens by itself, or correct output.uri",
    "AccessDenied": "Allow these keys s3:PutObject, s3:GetObject and s3:AbortMultipartUpload below the prefix",
    "InvalidAccessKeyId": "Check accessKeyId in the Secret of output.credentialsSecret",
    "SignatureDoesNotMatch": "Check secretAccessKey in the Secret of output.credentialsSecret",
    "ExpiredToken": "Put fresh keys and a fresh sessionToken into the Secret of output.credentialsSecret",
    "InvalidToken": "Check sessionToken in the Secret of output.credentialsSecret, or leave it out",
    "RequestTimeTooSkewed": "Set the clock of the node: a signature holds for minutes only",
    "QuotaExceeded": "Free space in the bucket {bucket} or raise its quota",
    "EntityTooLarge": "Raise the largest object that the server takes",
}


def _refusal(error: ClientError, bucket: str) -> ExportError:
    said = error.response.get("Error", {})
    code = said.get("Code", "")
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    change = _CHANGES.get(code, http_change(status, KEYS, f"the bucket {bucket}")).format(bucket=bucket)
    words = f"the server said {code}: {said.get('Message', '')}".rstrip(": ")
    return ExportError(f"{words} ({status})", change, transient=is_transient(status) and code not in _CHANGES)
