"""``https://`` and ``s3://``: one file, streamed to disk under a size cap, through the guarded client.

S3 requests are signed here (botocore) and sent by the same client, so that its addresses are checked like any other.
Never logs a URL's query, which may be a signature.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import httpx2
from botocore.session import Session
from tuneloop_core import uris
from tuneloop_core.data.files import kind_of
from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.files import gib, store_full_told
from tuneloop_trainer.guard import AddressGuard, guarded_client

log = logging.getLogger("tuneloop")

LINK_SECONDS = 3600
DEFAULT_REGION = "us-east-1"


@dataclass(frozen=True)
class S3Credentials:
    """Keys of an S3 service; empty ones ask without a signature."""

    access_key_id: str = ""
    secret_access_key: str = ""
    session_token: str = ""


@dataclass(frozen=True)
class About:
    """What is downloaded, for reasons and words: a dataset unless somebody says otherwise."""

    missing: Reason = Reason.DATASET_NOT_FOUND
    unfit: Reason = Reason.DATASET_INVALID
    field: str = "dataset.uri"


class Downloader:
    """Downloads single files. ``max_bytes`` 0 is no cap."""

    def __init__(
        self,
        guard: AddressGuard,
        max_bytes: int,
        schemes: tuple[str, ...] = ("https",),
        about: About = About(),  # noqa: B008 - frozen
    ) -> None:
        self._guard = guard
        self._max_bytes = max_bytes
        self._schemes = schemes
        self._about = about

    def https(self, url: str, token: str, folder: Path) -> Path:
        """Download a URL; ``token`` goes as a bearer to its own host only."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        target = folder / file_name(urlsplit(url).path)
        with guarded_client(self._guard, schemes=self._schemes) as client:
            self._stream(client, url, headers, target, uris.shown(url))
        return target

    def s3(self, uri: str, endpoint: str, credentials: S3Credentials, folder: Path) -> Path:
        """Download one object of rows."""
        return self.s3_object(uri, endpoint, credentials, folder / file_name(uri))

    def s3_object(self, uri: str, endpoint: str, credentials: S3Credentials, target: Path) -> Path:
        """Download one object; asks again in the bucket's own region when told so."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        with guarded_client(self._guard) as client:
            client.follow_redirects = False
            region = DEFAULT_REGION
            for _attempt in range(2):
                url = presign(bucket, key, endpoint, region, credentials)
                other = self._stream(client, url, {}, target, uri)
                if not other:
                    return target
                region = other
        field = self._about.field.removesuffix("uri")
        raise StageError(Reason.HUB_UNAVAILABLE, f"the region of {uri} could not be found out; set {field}endpoint.")

    def _stream(self, client: httpx2.Client, url: str, headers: dict[str, str], target: Path, shown: str) -> str:
        """Stream a URL into a file; returns the region to ask in instead, or an empty string when done."""
        try:
            with client.stream("GET", url, headers={**headers, "Accept-Encoding": "identity"}) as response:
                if region := _other_region(response):
                    return region
                _require_ok(response, shown, bool(headers), self._about)
                self._require_small(int(response.headers.get("Content-Length", 0)), shown)
                self._write(response, target, shown)
        except httpx2.TransportError as error:
            message = f"{shown} could not be read ({type(error).__name__}: {error}); it will be tried again."
            raise StageError(Reason.HUB_UNAVAILABLE, message) from error
        except (httpx2.InvalidURL, httpx2.TooManyRedirects) as error:
            raise StageError(self._about.missing, f"{shown} leads nowhere: {error}.") from error
        return ""

    def _write(self, response: httpx2.Response, target: Path, shown: str) -> None:
        written = 0
        with store_full_told(target.parent, shown), target.open("wb") as stream:
            for chunk in response.iter_raw(1024 * 1024):
                written += len(chunk)
                self._require_small(written, shown)
                stream.write(chunk)

    def _require_small(self, size: int, shown: str) -> None:
        if self._max_bytes and size > self._max_bytes:
            most = gib(self._max_bytes)
            message = f"{shown} is larger than {most}, the most that hub.maxBytes of this installation allows."
            raise StageError(self._about.unfit, message)


def presign(bucket: str, key: str, endpoint: str, region: str, credentials: S3Credentials) -> str:
    """A signed GET URL, made offline. Without keys, the plain URL (public buckets)."""
    from botocore import UNSIGNED  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    style = "path" if endpoint else "auto"
    signature = "s3v4" if credentials.access_key_id else UNSIGNED
    client = Session().create_client(
        "s3",
        region_name=region,
        endpoint_url=endpoint or None,
        aws_access_key_id=credentials.access_key_id or None,
        aws_secret_access_key=credentials.secret_access_key or None,
        aws_session_token=credentials.session_token or None,
        config=Config(signature_version=signature, s3={"addressing_style": style}),
    )
    sign: Callable[..., str] = client.generate_presigned_url
    return sign("get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=LINK_SECONDS)


def file_name(path: str) -> str:
    """What a downloaded file of rows is called: the last part of its path, as JSON Lines where that says no format."""
    name = PurePosixPath(path).name
    return name if kind_of(name) else f"{name or 'data'}.jsonl"


def _other_region(response: httpx2.Response) -> str:
    return response.headers.get("x-amz-bucket-region", "") if response.status_code in (301, 307, 400) else ""


def _require_ok(response: httpx2.Response, shown: str, with_token: bool, about: About) -> None:
    status = response.status_code
    if status == 200:
        return
    if status in (401, 403):
        hint = "the credentials in credentialsSecret are wrong or may not read it" if with_token else _CREDENTIALS_HINT
        raise StageError(Reason.ACCESS_DENIED, f"{shown} was refused ({status}): {hint}.")
    if status in (404, 410):
        hint = _FOLDER_HINT if shown.startswith("s3://") and about.missing is Reason.DATASET_NOT_FOUND else ""
        raise StageError(about.missing, f"{shown} does not exist ({status}). Check {about.field}{hint}.")
    if status >= 500 or status in (408, 429):
        raise StageError(
            Reason.HUB_UNAVAILABLE, f"{shown} could not be read (status {status}); it will be tried again."
        )
    raise StageError(about.missing, f"{shown} could not be read: status {status}.")


_FOLDER_HINT = "; the name of a folder ends in '/'"
_CREDENTIALS_HINT = (
    "check the Secret in credentialsSecret (keys 'token' for https://, 'accessKeyId' and 'secretAccessKey' for s3://)"
)
