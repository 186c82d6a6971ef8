"""The guard that keeps downloads from the pod, the node, the cluster's API and metadata services."""

import socket
from pathlib import Path

import hubs
import pods
import pytest
from tuneloop_core.stages import Reason, Stage

from tuneloop_trainer.download import Downloader
from tuneloop_trainer.errors import StageError
from tuneloop_trainer.guard import AddressGuard, cluster_guard, guarded_client

ON_LOOPBACK = AddressGuard(allowed=lambda address: address.is_loopback)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "169.254.169.254", "fe80::1", "::ffff:127.0.0.1", "224.0.0.1",
        "::ffff:169.254.169.254", "2002:7f00:1::", "64:ff9b::a9fe:a9fe", "100.100.100.200",
        "fd00:ec2::254", "10.96.0.1",
    ],
)  # fmt: skip
def test_addresses_that_lead_back_are_refused(address: str) -> None:
    guard = AddressGuard(["10.96.0.1/32"], resolver=lambda _host, _port: ["10.0.0.1", address])
    with pytest.raises(StageError) as caught:
        guard.addresses("data.example.com", 443)
    assert caught.value.reason is Reason.URI_REFUSED
    assert address in caught.value.message


@pytest.mark.parametrize("address", ["10.1.2.3", "192.168.1.1", "172.20.0.5", "8.8.8.8", "2606:4700::1", "fd12::1"])
def test_public_and_private_addresses_are_allowed(address: str) -> None:
    assert AddressGuard(resolver=lambda _host, _port: [address]).addresses("hub", 443) == [address]


CLUSTER = {"10.96.0.1": "10.96.0.1", "kubernetes.default.svc": "10.96.0.1", "api.cloud": "10.9.9.9"}


def by_name(host: str, _port: int) -> list[str]:
    if host not in CLUSTER:
        raise OSError("no such name")
    return [CLUSTER[host]]


@pytest.mark.parametrize(
    ("environment", "refused", "host", "port", "is_refused"),
    [
        ({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, (), "kubernetes.default.svc", 443, True),
        ({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, (), "10.96.0.1", 80, True),
        ({"KUBERNETES_SERVICE_HOST": "api.cloud"}, (), "api.cloud", 443, True),  # some clouds' hooks write a name
        ({"KUBERNETES_SERVICE_HOST": "api.cloud"}, (), "10.96.0.1", 443, True),
        ({"KUBERNETES_SERVICE_HOST": "nowhere"}, (), "api.cloud", 443, False),
        ({}, (), "kubernetes.default.svc", 443, False),  # not in a pod
        ({}, ("10.9.9.9:6443",), "api.cloud", 6443, True),
        ({}, ("10.9.9.9:6443",), "api.cloud", 9000, False),  # an S3 on the only node
        ({}, ("10.9.9.0/24",), "api.cloud", 9000, True),
    ],
)
def test_the_api_server_is_refused_by_itself(
    environment: dict[str, str], refused: tuple[str, ...], host: str, port: int, is_refused: bool
) -> None:
    guard = cluster_guard(refused, environment, by_name)
    if is_refused:
        with pytest.raises(StageError, match="an address of the cluster's nodes, its API or a metadata service"):
            guard.addresses(host, port)
    else:
        assert guard.addresses(host, port) == [CLUSTER[host]]


def test_ipv6_refusals_of_one_port() -> None:
    guard = AddressGuard(["[fd00::1]:6443"], lambda _host, _port: ["fd00::1"])
    assert guard.addresses("s3", 9000) == ["fd00::1"]
    with pytest.raises(StageError, match="fd00::1"):
        guard.addresses("s3", 6443)


def test_a_stage_asks_its_own_environment(bare_pod: pods.Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "192.0.2.1")
    code, said = bare_pod.run(Stage.FETCH, {"model": {"uri": "hf://acme/tiny"}, "hubEndpoint": "https://192.0.2.1"})
    assert (code, said.reason) == (42, "URIRefused")


def test_the_client_connects_to_the_address_that_was_checked() -> None:
    """A name that answers otherwise the second time (DNS rebinding) is never asked a second time."""
    answers = iter([["127.0.0.1"]])
    with hubs.serving(lambda *_: (200, {}, b"ok")) as url:
        port = url.rsplit(":", 1)[1]
        guard = AddressGuard(resolver=lambda _host, _port: next(answers), allowed=lambda address: address.is_loopback)
        with guarded_client(guard) as client:
            assert client.get(f"http://rebinding.example.com:{port}/").content == b"ok"


def test_a_name_without_address_is_a_connection_error() -> None:
    def unknown(_host: str, _port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    with pytest.raises(StageError) as caught:
        Downloader(AddressGuard(resolver=unknown), 0).https("https://absent.example.com/a.jsonl", "", Path("/tmp"))
    assert caught.value.reason is Reason.HUB_UNAVAILABLE
