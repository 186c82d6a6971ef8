"""The URIs of Tuneloop, taken apart: one frozen dataclass per scheme, and errors that say what is allowed.

The same grammar as the CEL rules in ``api/uri_rules.py``, for the parts that act on a URI. Never resolves a name and
never opens anything: whether a host may be reached is the fetcher's check, on addresses.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tuneloop_core.constants import STORE_CLAIM

_SEGMENT: Final = r"[A-Za-z0-9._=@+-]+"
_PATH: Final = rf"{_SEGMENT}(?:/{_SEGMENT})*/?"
_REPO: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HOST: Final = r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"


class URIError(ValueError):
    """A URI that Tuneloop does not take; the message says what was found and what is allowed."""


@dataclass(frozen=True, slots=True)
class HubModel:
    """``hf://ORG/NAME``."""

    repo: str  # ORG/NAME


@dataclass(frozen=True, slots=True)
class HubDataset:
    """``hf://datasets/ORG/NAME[/FILE]``; ``file`` is empty for the whole repository."""

    repo: str  # ORG/NAME
    file: str = ""


@dataclass(frozen=True, slots=True)
class S3Object:
    """``s3://BUCKET/KEY``; a key that ends in ``/`` is a prefix."""

    bucket: str
    key: str


@dataclass(frozen=True, slots=True)
class ClaimPath:
    """``pvc://CLAIM/PATH``: a path in a PersistentVolumeClaim of the same namespace."""

    claim: str
    path: str


@dataclass(frozen=True, slots=True)
class OCIReference:
    """``oci://REGISTRY/REPOSITORY[:TAG][@DIGEST]``."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class HTTPSAddress:
    """``https://HOST[:PORT]/PATH``; ``url`` is the whole text."""

    url: str
    host: str


URI = HubModel | HubDataset | S3Object | ClaimPath | OCIReference | HTTPSAddress

_Form = tuple[str, str, Callable[[re.Match[str]], URI]]
_HUB_DATASET: Final[_Form] = (
    "hf://datasets/ORG/NAME[/FILE]",
    rf"hf://datasets/({_REPO})(?:/({_PATH}))?",
    lambda m: HubDataset(m[1], m[2] or ""),
)
_HUB_MODEL: Final[_Form] = ("hf://ORG/NAME", rf"hf://(?!datasets/)({_REPO})", lambda m: HubModel(m[1]))
_S3: Final[_Form] = (
    "s3://BUCKET/KEY",
    rf"s3://([a-z0-9][a-z0-9.-]{{1,61}}[a-z0-9])/({_PATH})",
    lambda m: S3Object(m[1], m[2]),
)
_PVC: Final[_Form] = (
    "pvc://CLAIM/PATH",
    rf"pvc://([a-z0-9](?:[-a-z0-9.]{{0,251}}[a-z0-9])?)/({_PATH})",
    lambda m: ClaimPath(m[1], m[2].rstrip("/")),
)
_OCI: Final[_Form] = (
    "oci://REGISTRY/REPOSITORY[:TAG]",
    r"oci://([A-Za-z0-9.-]+(?::[0-9]{1,5})?)/([a-z0-9._/-]+)(?::([A-Za-z0-9._-]+))?(?:@(sha256:[0-9a-f]{64}))?",
    lambda m: OCIReference(m[1], m[2], m[3] or "", m[4] or ""),
)
_HTTPS: Final[_Form] = (
    "https://HOST/PATH",
    rf"https://({_HOST})/[^\s\\]*",
    lambda m: HTTPSAddress(m[0], re.sub(r":[0-9]+$", "", m[1]).strip("[]").lower()),
)

_MODEL_FORMS: Final = (_HUB_MODEL, _S3, _OCI, _PVC)
_DATASET_FORMS: Final = (_HUB_DATASET, ("s3://BUCKET/KEY, s3://BUCKET/PREFIX/", *_S3[1:]), _PVC, _HTTPS)
_OUTPUT_FORMS: Final = (_S3, _OCI, _HUB_MODEL, _PVC)


def parse_model_uri(text: str) -> URI:
    """The parts of ``model.uri``; URIError otherwise."""
    return _parse(text, "model uri", _MODEL_FORMS)


def parse_dataset_uri(text: str) -> URI:
    """The parts of ``dataset.uri``; URIError otherwise."""
    return _parse(text, "dataset uri", _DATASET_FORMS)


def parse_output_uri(text: str) -> URI:
    """The parts of ``output.uri``; URIError otherwise."""
    uri = _parse(text, "output uri", _OUTPUT_FORMS)
    if isinstance(uri, ClaimPath) and uri.claim == STORE_CLAIM:
        raise URIError(f'output uri "{text}": the claim {STORE_CLAIM} holds the artifact already; name another claim')
    if isinstance(uri, OCIReference) and uri.digest:
        raise URIError(f'output uri "{text}": an export is found by a tag, not by a digest; leave @sha256:... out')
    return uri


def shown(uri: str) -> str:
    """A URI as logs, messages, status and artifacts have it: an https:// address without its query, often a signature.

    No path of another scheme has a ``?`` or ``#``.
    """
    return re.split(r"[?#]", uri, maxsplit=1)[0]


def _parse(text: str, what: str, forms: tuple[_Form, ...]) -> URI:
    """The first form that the whole text has."""
    _refuse_dots(text, what)
    for _, pattern, build in forms:
        if match := re.fullmatch(pattern, text):
            return build(match)
    allowed = ", ".join(form for form, _, _ in forms)
    raise URIError(f'{what} "{shown(text)}" is not one of {allowed}')


def _refuse_dots(text: str, what: str) -> None:
    """A path leads downwards: no ``.`` or ``..`` as a segment, in any spelling."""
    segments = text.split("://", 1)[-1].split("/")
    if any(segment in {".", ".."} for segment in segments) or "%2e" in text.lower():
        raise URIError(f"{what} \"{shown(text)}\" has '.' or '..' in its path; write the path from its root downwards")
