"""Where downloads may lead: an HTTP client that checks every address it connects to, redirects included.

A user's URL must not reach the pod itself, the node, a cloud's metadata service or the cluster's API. Names are
resolved here, every address is checked, and the connection goes to the very address that was checked, so that a name
cannot change its mind in between. Private ranges stay allowed: private hubs and S3 are the normal case.
"""

import ipaddress
import os
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import httpcore2
import httpx2
from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str, int], Sequence[str]]

# Metadata services that lie outside the link-local range: AWS over IPv6, Alibaba Cloud.
METADATA = ("fd00:ec2::/32", "100.100.100.200/32")
API_SERVER_ENV = "KUBERNETES_SERVICE_HOST"  # the kubelet sets it in every pod, with a token or without
API_SERVER_NAME = "kubernetes.default.svc"
CONNECT_SECONDS = 20.0
READ_SECONDS = 120.0


def resolve(host: str, port: int) -> list[str]:
    """Addresses of a name, in the system's order; raises ``OSError``."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class AddressGuard:
    """Decides on addresses. ``refused``: CIDRs, or ADDRESS:PORT; ``allowed`` is for tests that serve on loopback."""

    def __init__(
        self,
        refused: Iterable[str] = (),
        resolver: Resolver = resolve,
        allowed: Callable[[IPAddress], bool] | None = None,
    ) -> None:
        self._refused = [_refusal(text) for text in (*METADATA, *refused)]
        self._resolver = resolver
        self._allowed = allowed or (lambda _address: False)

    def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host, all of them checked; raises ``URIRefused`` if any is refused."""
        addresses = self._resolver(host, port)
        for text in addresses:
            if why := self._why_refused(ipaddress.ip_address(text.split("%")[0]), port):
                raise StageError(
                    Reason.URI_REFUSED,
                    f"{host} leads to {text}, {why}. Downloads and exports may go to public and private addresses, not "
                    "there: name the server that is meant.",
                )
        return list(addresses)

    def _why_refused(self, address: IPAddress, port: int) -> str:
        if self._allowed(address):
            return ""
        for candidate in (address, *_embedded(address)):
            for attribute, words in _KINDS:
                if getattr(candidate, attribute):
                    return words
            if any(candidate in network and only in (0, port) for network, only in self._refused):
                return "an address of the cluster's nodes, its API or a metadata service"
        return ""


def cluster_guard(
    refused: Iterable[str], environment: Mapping[str, str] = os.environ, resolver: Resolver = resolve
) -> AddressGuard:
    """The guard of a pod: with what the operator refuses, and the API server as this pod would reach it."""
    hosts = [environment[API_SERVER_ENV], API_SERVER_NAME] if API_SERVER_ENV in environment else []
    found = [address.split("%")[0] for host in hosts for address in _addresses(host, resolver)]
    return AddressGuard((*refused, *found), resolver)


def _addresses(host: str, resolver: Resolver) -> Sequence[str]:
    try:
        return resolver(host, 443)
    except OSError:  # a cluster without DNS, or without this name
        return ()


def _refusal(text: str) -> tuple[IPNetwork, int]:
    """The network of a CIDR and port 0 for every port, or the one address and port of ADDRESS:PORT."""
    try:
        return ipaddress.ip_network(text, strict=False), 0
    except ValueError:
        address, _, port = text.rpartition(":")
        return ipaddress.ip_network(address.strip("[]")), int(port)


_KINDS = (
    ("is_loopback", "a loopback address"),
    ("is_link_local", "a link-local address (metadata services live there)"),
    ("is_unspecified", "the unspecified address"),
    ("is_multicast", "a multicast address"),
)


def _embedded(address: IPAddress) -> Iterable[IPAddress]:
    """IPv4 addresses that an IPv6 one stands for: mapped, 6to4, NAT64."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            yield address.ipv4_mapped
        if address.sixtofour:
            yield address.sixtofour
        if address in ipaddress.ip_network("64:ff9b::/96"):
            yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


class GuardedBackend(httpcore2.NetworkBackend):
    """Connects only to addresses that the guard has just checked."""

    def __init__(self, guard: AddressGuard) -> None:
        self._guard = guard
        self._sync = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        """Try the checked addresses in order; TLS still verifies the name, which httpcore keeps."""
        failure: Exception = httpcore2.ConnectError(f"{host} has no address")
        try:
            addresses = self._guard.addresses(host, port)
        except OSError as error:
            raise httpcore2.ConnectError(f"{host}: {error}") from error
        for address in addresses:
            try:
                return self._sync.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    def sleep(self, seconds: float) -> None:
        """Between retries."""
        self._sync.sleep(seconds)


class GuardedTransport(httpx2.HTTPTransport):
    """httpx's transport over the guarded backend; no proxy, no Unix socket."""

    def __init__(self, guard: AddressGuard) -> None:
        self._pool = httpcore2.ConnectionPool(
            ssl_context=ssl.create_default_context(), network_backend=GuardedBackend(guard), retries=2
        )


def guarded_client(
    guard: AddressGuard,
    hooks: Sequence[Callable[[httpx2.Request], Any]] = (),
    schemes: Sequence[str] = ("https", "http"),
) -> httpx2.Client:
    """A client that follows redirects, each one checked for its address and its scheme."""

    def check_scheme(request: httpx2.Request) -> None:
        if request.url.scheme not in schemes:
            message = (
                f"the download leads to {request.url.scheme}://{request.url.host}; only {schemes[0]}:// is followed"
            )
            raise StageError(Reason.URI_REFUSED, message)

    return httpx2.Client(
        transport=GuardedTransport(guard),
        event_hooks={"request": [check_scheme, *hooks]},
        follow_redirects=True,
        trust_env=False,
        timeout=httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
    )
