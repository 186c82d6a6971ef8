"""CEL rules on URIs, in words; ``tuneloop_core.uris`` is the same grammar in Python.

Rules are built from small pieces because CEL in a CRD has no variables. Never knows which release takes which
scheme: that is ``release.py``.
"""

from typing import Final

from tuneloop_core.api.base import cel
from tuneloop_core.constants import STORE_CLAIM

# One segment of a path, an organisation, a file: no empty ones, no leading dot-dot (checked by NO_DOTS).
_SEGMENT: Final = "[A-Za-z0-9._=@+-]+"
_PATH: Final = f"{_SEGMENT}(/{_SEGMENT})*/?"
_REPO: Final = "[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_CLAIM: Final = "[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
_BUCKET: Final = "[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
_HOST: Final = r"([A-Za-z0-9._-]+|\\[[0-9A-Fa-f:.]+\\])(:[0-9]{1,5})?"

HF_MODEL: Final = f"hf://{_REPO}"
HF_DATASET: Final = f"hf://datasets/{_REPO}(/{_PATH})?"
S3: Final = f"s3://{_BUCKET}/{_PATH}"
PVC: Final = f"pvc://{_CLAIM}/{_PATH}"
OCI: Final = "oci://[A-Za-z0-9.-]+(:[0-9]{1,5})?/[a-z0-9._/-]+(:[A-Za-z0-9._-]+)?(@sha256:[0-9a-f]{64})?"
HTTPS: Final = rf"https://{_HOST}/[^\\s\\\\]*"

_MODEL_WORDS: Final = "hf://ORG/NAME, s3://BUCKET/PREFIX, oci://REGISTRY/REPOSITORY[:TAG] or pvc://CLAIM/PATH"
_DATASET_WORDS: Final = (
    "hf://datasets/ORG/NAME[/FILE], s3://BUCKET/KEY, s3://BUCKET/PREFIX/, pvc://CLAIM/PATH or https://HOST/PATH"
)

FOLDER: Final = "{0}.matches('^((hf|pvc)://.*|s3://.*/)$')"
"""CEL, to be formatted: a dataset's uri below which files may be chosen; it may still name one file of them."""


def _matches(*forms: str) -> str:
    """CEL: the text has one of the forms, whole."""
    return f"self.matches('^({'|'.join(forms)})$')"


NO_DOTS: Final = cel(
    "!self.matches('/[.]{1,2}(/|$)') && !self.matches('(?i)%2e')",
    "a path must lead downwards from its root: no '..' or '.' in it",
)

# Hosts that lead back into the pod, the node, the cluster's API or a cloud's metadata. Matched in the text itself:
# the host that CEL's url() gives has no bound, and its cost neither. IPv6 is an allowlist: global and private unicast.
_END: Final = "[.]?(:|/|$)"
_QUAD: Final = "(0|[1-9][0-9]{0,2})([.](0|[1-9][0-9]{0,2})){3}"
_REFUSED_NAMES: Final = (
    f"([^/:]*[.])?localhost{_END}",
    f"metadata([.]google[.]internal|[.]goog)?{_END}",
    f"instance-data([.]ec2[.]internal)?{_END}",
    f"kubernetes([.]default([.]svc([.][^/:]*)?)?)?{_END}",
    "(0|127|169[.]254)[.][0-9.]+(:|/|$)",
    f"100[.]100[.]100[.]200{_END}",
    "[[]fd00:0?ec2:",
)


def _host_is(pattern: str) -> str:
    """CEL: the text's authority begins with the pattern, whatever the case."""
    return f"self.matches('(?i)^https?://{pattern}')"


PUBLIC_HOST: Final = cel(
    "!self.matches('^https?://') || !("
    + " || ".join(_host_is(name) for name in _REFUSED_NAMES)
    + f" || ({_host_is('[[]')} && !{_host_is('[[](([23][0-9a-f]{3})|(f[cd][0-9a-f]{2})):')})"
    + f" || ({_host_is(f'([^/:]*[.])?(0x[0-9a-f]*|[0-9]+){_END}')} && !{_host_is(f'{_QUAD}(:|/|$)')}))",
    "the host must not be localhost, a loopback, link-local or metadata address, or the Kubernetes API: "
    "name the server that holds the data",
)


def model_uri_rules() -> list[dict[str, str]]:
    """Rules of model.uri; hf://datasets/ is told apart, since ``datasets`` would pass as an organisation."""
    return [
        cel(
            f"{_matches(HF_MODEL, S3, OCI, PVC)} && !self.startsWith('hf://datasets/')",
            f"must be {_MODEL_WORDS}",
        ),
        NO_DOTS,
    ]


def dataset_uri_rules() -> list[dict[str, str]]:
    """Rules of dataset.uri."""
    return [
        cel(_matches(HF_DATASET, S3, PVC, HTTPS), f"must be {_DATASET_WORDS}"),
        NO_DOTS,
        PUBLIC_HOST,
    ]


def output_uri_rules() -> list[dict[str, str]]:
    """Rules of output.uri."""
    return [
        cel(
            f"{_matches(S3, OCI, HF_MODEL, PVC)} && !self.startsWith('hf://datasets/')",
            "must be s3://BUCKET/PREFIX, oci://REGISTRY/REPOSITORY[:TAG], hf://ORG/NAME or pvc://CLAIM/PATH",
        ),
        NO_DOTS,
        cel(
            f"!self.startsWith('pvc://{STORE_CLAIM}/')",
            f"the claim {STORE_CLAIM} holds the artifact already: name another claim, or leave output out",
        ),
        cel(
            "!self.startsWith('oci://') || !self.contains('@')",
            "an export is found by a tag, not by a digest: leave @sha256:... out; status.artifact.uri gives the digest",
        ),
    ]


def endpoint_rules() -> list[dict[str, str]]:
    """Rules of an endpoint: plain http is allowed, since S3 services inside a cluster often have no TLS."""
    return [
        cel(
            rf"self == '' || self.matches('^https?://{_HOST}/?$')",
            "endpoint must be http(s)://HOST[:PORT], without a path, user or password",
        )
    ]
