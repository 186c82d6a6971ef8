"""The part of the OCI distribution protocol that a push and a pull of files need, over the guarded client.

Speaks Basic and Bearer (token service) authentication as registries ask for it. Credentials go to the registry and to
the token service that it names over TLS, or to the registry's own host; never to where an upload is redirected.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpx2

from tuneloop_trainer.exports.failures import ExportError, http_change, is_transient
from tuneloop_trainer.guard import AddressGuard, guarded_client

Content = Iterator[bytes]
KEYS = "username and token"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True)
class RegistryLogin:
    """A user and a password or access token; many registries take any user beside a token."""

    username: str = ""
    token: str = ""


class Registry:
    """One repository of one registry; ``base`` is ``http(s)://HOST[:PORT]``."""

    def __init__(
        self, base: str, repository: str, login: RegistryLogin, guard: AddressGuard, actions: str = "pull,push"
    ) -> None:
        self._base = f"{base}/v2/{repository}"
        self._repository, self._login, self._actions = repository, login, actions
        self._http = guarded_client(guard)
        self._authorization = ""

    def put_blob(self, digest: str, size: int, content: Callable[[], Content]) -> bool:
        """Upload a blob unless the registry has it; says whether it was sent."""
        # A HEAD has no words for its refusal: the upload itself tells why.
        if self._ask("HEAD", f"{self._base}/blobs/{digest}", allowed=(401, 403, 404)).status_code == 200:
            return False
        begun = self._ask("POST", f"{self._base}/blobs/uploads/", headers={"Content-Length": "0"})
        place = self._upload_place(begun)
        url = f"{place}{'&' if '?' in place else '?'}digest={quote(digest, safe='')}"
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        self._ask("PUT", url, headers=headers, content=content)
        return True

    def _upload_place(self, begun: httpx2.Response) -> str:
        """Where a begun upload goes on; a registry behind a proxy may have forgotten that it has TLS."""
        place, own = urlsplit(urljoin(str(begun.request.url), begun.headers.get("Location", ""))), urlsplit(self._base)
        return (place._replace(scheme=own.scheme) if place.netloc == own.netloc else place).geturl()

    def put_manifest(self, tag: str, media_type: str, document: bytes) -> None:
        """Put the manifest under a tag: from now on it can be pulled."""
        headers = {"Content-Type": media_type, "Content-Length": str(len(document))}
        self._ask("PUT", f"{self._base}/manifests/{tag}", headers=headers, content=lambda: iter((document,)))

    def manifest(self, reference: str) -> tuple[str, dict[str, Any]]:
        """The manifest under a tag or digest, and its digest."""
        answer = self._ask("GET", f"{self._base}/manifests/{reference}", headers={"Accept": MANIFEST_TYPE})
        digest = f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
        if reference.startswith("sha256:") and reference != digest:
            raise ExportError(f"{self._base} sent a manifest of digest {digest}", "Look into the registry's log")
        try:
            return digest, dict(answer.json())
        except (ValueError, TypeError) as error:
            raise ExportError(f"{self._base} sent no manifest ({error})", "Look into the registry's log") from error

    def pull_blob(self, digest: str, size: int, target: Path) -> None:
        """Stream a blob into a file; ``manifest`` was asked before, so the login is there. Digest and size are checked.

        Where it lies elsewhere (object storage), the client follows without our credentials.
        """
        hashed, written = hashlib.sha256(), 0
        with self._opened(f"{self._base}/blobs/{digest}") as answer, target.open("wb") as file:
            for chunk in answer.iter_bytes(1 << 20):
                written += len(chunk)
                if written > size:
                    break
                hashed.update(chunk)
                file.write(chunk)
        if written != size or f"sha256:{hashed.hexdigest()}" != digest:
            raise ExportError(f"{self._base} sent other bytes than {digest}", "It is tried again", transient=True)

    @contextmanager
    def _opened(self, url: str) -> Iterator[httpx2.Response]:
        """A GET under way. A registry's tokens live minutes and a model takes longer: one that ran out is renewed."""
        for last in (False, True):
            own = {"Authorization": self._authorization} if self._authorization else {}
            with self._http.stream("GET", url, headers=own) as answer:
                if answer.is_success:
                    yield answer
                    return
                answer.read()
            if last or answer.status_code != 401 or not self._is_own(str(answer.request.url)):
                raise self._refusal(answer)
            self._authorize(answer)

    def _is_own(self, url: str) -> bool:
        return urlsplit(url)[:2] == urlsplit(self._base)[:2]

    def _ask(
        self,
        method: str,
        url: str,
        headers: dict[str, str] | None = None,
        content: Callable[[], Content] | None = None,
        allowed: tuple[int, ...] = (),
    ) -> httpx2.Response:
        """One request; asked for credentials, it is sent again with them."""
        response = self._send(method, url, headers or {}, content)
        if response.status_code == 401 and (self._login.token or self._actions == "pull"):
            self._authorize(response)
            response = self._send(method, url, headers or {}, content)
        if not response.is_success and response.status_code not in allowed:
            raise self._refusal(response)
        return response

    def _send(
        self, method: str, url: str, headers: dict[str, str], content: Callable[[], Content] | None
    ) -> httpx2.Response:
        login = {"Authorization": self._authorization} if self._authorization and self._is_own(url) else {}
        return self._http.request(method, url, headers={**headers, **login}, content=content() if content else None)

    def _authorize(self, response: httpx2.Response) -> None:
        """Answer a challenge (RFC 9110; the token service is the distribution project's specification)."""
        scheme, _, rest = response.headers.get("WWW-Authenticate", "").partition(" ")
        login = httpx2.BasicAuth(self._login.username or "token", self._login.token) if self._login.token else None
        if scheme.lower() != "bearer":
            if login is not None:
                self._authorization = next(login.auth_flow(response.request)).headers["Authorization"]
            return
        challenge = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        realm = challenge.get("realm", "")
        self._require_trusted(realm)
        query = {"service": challenge.get("service", ""), "scope": f"repository:{self._repository}:{self._actions}"}
        answer = self._http.get(realm, params={key: value for key, value in query.items() if value}, auth=login)
        if not answer.is_success:
            raise self._refusal(answer)
        granted = answer.json()
        self._authorization = f"Bearer {granted.get('token') or granted.get('access_token', '')}"

    def _require_trusted(self, realm: str) -> None:
        found, own = urlsplit(realm), urlsplit(self._base)
        if found.scheme != "https" and (own.scheme, own.hostname) != (found.scheme, found.hostname):
            said = f"{own.netloc} sends credentials to {realm}, which has no TLS"
            raise ExportError(said, "Give the registry's token service an https:// address")

    def _refusal(self, response: httpx2.Response) -> ExportError:
        status, host = response.status_code, response.request.url.host
        change = http_change(status, KEYS, f"the project or repository {self._repository}")
        said = f"{host} said {status}: {_words(response)}"
        return ExportError(said, change, transient=is_transient(status), status=status)


def _words(response: httpx2.Response) -> str:
    """What the registry's error document says."""
    try:
        errors = response.json()["errors"]
        return "; ".join(f"{error['code']}: {error.get('message', '')}" for error in errors)
    except (ValueError, KeyError, TypeError):
        return response.reason_phrase
