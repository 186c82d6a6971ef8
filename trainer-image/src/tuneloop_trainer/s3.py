"""An S3 client: botocore's protocol and signatures, every request sent by the guarded client.

botocore would open its own connections to any address; here each one is checked like a download's. Keys come from
mounted files only: never from the environment, a profile or a metadata service.
"""

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx2
from botocore import UNSIGNED
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError, ReadTimeoutError
from botocore.session import Session

from tuneloop_trainer.download import DEFAULT_REGION, S3Credentials
from tuneloop_trainer.guard import AddressGuard, guarded_client

TRIES = 4


def s3_client(endpoint: str, credentials: S3Credentials, guard: AddressGuard, region: str = DEFAULT_REGION) -> Any:
    """A botocore client of S3; ``endpoint`` empty is Amazon's. It finds a bucket's own region by itself."""
    client = Session().create_client(
        "s3",
        region_name=region,
        endpoint_url=endpoint or None,
        aws_access_key_id=credentials.access_key_id or "anonymous",  # without one it would ask metadata services
        aws_secret_access_key=credentials.secret_access_key or "anonymous",
        aws_session_token=credentials.session_token or None,
        config=_config(endpoint, signed=bool(credentials.access_key_id)),
    )
    client.meta.events.register("before-send.s3", _Sender(guard))
    return client


def _config(endpoint: str, *, signed: bool) -> Config:
    """The digest of every body is signed, which each S3 server verifies; newer checksums only where required."""
    return Config(
        signature_version="s3v4" if signed else UNSIGNED,
        s3={"addressing_style": "path" if endpoint else "auto", "payload_signing_enabled": True},
        retries={"mode": "standard", "total_max_attempts": TRIES},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )


class _Sender:
    """Answers botocore's ``before-send``: what a handler returns is taken as the response."""

    def __init__(self, guard: AddressGuard) -> None:
        self._http = guarded_client(guard)
        self._http.follow_redirects = False  # a redirect must be signed anew, which botocore does

    def __call__(self, request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        headers = {name: _text(value) for name, value in request.headers.items()}
        try:
            response = self._http.request(request.method, request.url, content=request.body or b"", headers=headers)
        except (httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise ConnectTimeoutError(endpoint_url=_shown(request.url), error=error) from error
        except httpx2.TimeoutException as error:
            raise ReadTimeoutError(endpoint_url=_shown(request.url), error=error) from error
        except httpx2.TransportError as error:
            raise EndpointConnectionError(endpoint_url=_shown(request.url), error=error) from error
        return AWSResponse(request.url, response.status_code, response.headers, _Body(response.content))


class _Body(BytesIO):
    """What botocore reads of a raw response."""

    def stream(self) -> Iterator[bytes]:
        yield self.read()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _shown(url: str) -> str:
    return url.split("?", 1)[0]
