"""Tokens for model servers: an audience a namespace, made by the TokenRequest API for the asker's own service account.

A pod that only looks like a server is sent a token, too. It opens nothing beyond the namespace that the pod is in, for
no server takes a token of another namespace. Shapes and times only; never does I/O.
"""

from dataclasses import dataclass
from typing import Any, Final

SERVER_AUDIENCE: Final = "tuneloop-server"
LIFETIME_SECONDS: Final = 3600
REFRESH_SHARE: Final = 0.75  # of its life, after which another is asked for


@dataclass(frozen=True)
class ServerToken:
    """A token, and after how many seconds to ask for the next."""

    value: str
    refresh_after: float


def server_audience(namespace: str) -> str:
    """What a server of this namespace wants to read in a token."""
    return f"{SERVER_AUDIENCE}/{namespace}"


def token_path(account_namespace: str, account: str) -> str:
    """Where on the API server an account's tokens are asked for."""
    return f"/api/v1/namespaces/{account_namespace}/serviceaccounts/{account}/token"


def token_request(namespace: str) -> dict[str, Any]:
    """The request for a token towards the servers of ``namespace``.

    The bare audience is for servers whose guard.json an operator of before wrote: it is of use for the minute until the
    kubelet has brought them the new one, and worth nothing to the others.
    """
    return {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"audiences": [server_audience(namespace), SERVER_AUDIENCE], "expirationSeconds": LIFETIME_SECONDS},
    }


def read_token(answer: dict[str, Any]) -> ServerToken:
    """The token in an answer, whose life the API server may have changed; KeyError or ValueError for another answer."""
    return ServerToken(str(answer["status"]["token"]), float(answer["spec"]["expirationSeconds"]) * REFRESH_SHARE)
