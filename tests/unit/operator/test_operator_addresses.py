"""Which addresses of the cluster downloads are kept from."""

from typing import Any

import pytest

from tuneloop_operator.reconcile.addresses import api_servers, node_addresses


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            {"serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": "10.0.0.9:6443"}]},
            [("10.0.0.9", 6443)],
        ),
        ({"serverAddressByClientCIDRs": [{"serverAddress": "[fd00::9]:6443"}] * 2}, [("fd00::9", 6443)]),
        (
            {"serverAddressByClientCIDRs": [{"serverAddress": "ip-10-0-0-9.internal:443"}]},
            [("ip-10-0-0-9.internal", 443)],
        ),
        ({"serverAddressByClientCIDRs": [{"serverAddress": ""}, {"serverAddress": "10.0.0.9"}]}, []),
        ({}, []),
    ],
)
def test_where_the_api_server_listens(said: dict[str, Any], expected: list[tuple[str, int]]) -> None:
    assert api_servers(said) == expected


def node(**addresses: str) -> dict[str, Any]:
    return {"status": {"addresses": [{"type": kind, "address": value} for kind, value in addresses.items()]}}


@pytest.mark.parametrize(
    ("nodes", "allowed", "expected"),
    [
        (
            [node(InternalIP="10.0.0.2", Hostname="one"), node(InternalIP="10.0.0.1", ExternalIP="203.0.113.1")],
            [],
            ["10.0.0.1/32", "10.0.0.2/32", "203.0.113.1/32"],
        ),
        ([node(InternalIP="fd00::1")], [], ["fd00::1/128"]),
        ([node(InternalIP="10.0.0.1"), node(InternalIP="10.0.0.2")], ["10.0.0.2/31"], ["10.0.0.1/32"]),
        ([node(InternalIP="10.0.0.1")], ["fd00::/8"], ["10.0.0.1/32"]),
        ([{"status": {}}, {}], [], []),
    ],
)
def test_addresses_of_nodes(nodes: list[dict[str, Any]], allowed: list[str], expected: list[str]) -> None:
    assert node_addresses(nodes, allowed) == expected
