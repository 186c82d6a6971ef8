"""Which addresses no download may lead to beside those that the chart names: the API server's and the nodes'.

Asked of the API server, at most every ten minutes and only when a pod with a way out is made. Never a watch.
"""

import asyncio
import ipaddress
import logging
import socket
import time
from collections.abc import Iterable, Sequence

from tuneloop_core.settings import Settings
from tuneloop_operator.kube.client import Client
from tuneloop_operator.kube.errors import ForbiddenError
from tuneloop_operator.kube.resources import NODES, Obj

logger = logging.getLogger(__name__)

KEPT_SECONDS = 600.0
MOST_NODES = 500  # their addresses pass through an environment variable, which holds 128 KiB
NODE_ADDRESSES = ("InternalIP", "ExternalIP")


class ClusterAddresses:
    """Adds what is refused by itself to the settings that Jobs are built with."""

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client, self._settings = client, settings
        self._refused: list[str] = []
        self._read_at = float("-inf")

    async def refusing(self) -> Settings:
        """The settings, with the API server and (``scope.readNodes``) the nodes among ``hub.refused_addresses``."""
        if time.monotonic() - self._read_at >= KEPT_SECONDS:
            nodes = node_addresses(await self._nodes(), self._settings.hub.allowed_addresses)
            self._refused, self._read_at = [*await self._api_server(), *nodes], time.monotonic()
        hub = self._settings.hub
        refused = [*hub.refused_addresses, *(each for each in self._refused if each not in hub.refused_addresses)]
        return self._settings.model_copy(update={"hub": hub.model_copy(update={"refused_addresses": refused})})

    async def _api_server(self) -> list[str]:
        """Of its own port only: on a small cluster its node may be where a hub or an S3 answers, too."""
        try:
            return [
                endpoint
                for host, port in api_servers(await self._client.get_path("/api"))
                for endpoint in await _resolved(host, port)
            ]
        except ForbiddenError as error:
            logger.warning(
                "hub.refusedAddresses must name the API server, which may not be asked for its address: %s", error
            )
            return []

    async def _nodes(self) -> list[Obj]:
        if not self._settings.cluster_scoped_rights:
            return []
        try:
            found = await self._client.list(NODES, "", limit=MOST_NODES)
        except ForbiddenError as error:
            logger.warning("hub.refusedAddresses must name the nodes, which may not be read: %s", error)
            return []
        if len(found) == MOST_NODES:
            logger.warning(
                "downloads are kept from the first %s nodes; name the CIDR of all in hub.refusedAddresses", MOST_NODES
            )
        return found


def api_servers(versions: Obj) -> list[tuple[str, int]]:
    """(host, port) of the servers that ``GET /api`` names: where they really listen, behind the Service."""
    said = [entry.get("serverAddress", "") for entry in versions.get("serverAddressByClientCIDRs", [])]
    parts = [text.rpartition(":") for text in dict.fromkeys(said)]
    return [(host.strip("[]"), int(port)) for host, _, port in parts if host and port.isdigit()]


def node_addresses(nodes: Iterable[Obj], allowed: Sequence[str]) -> list[str]:
    """The nodes' addresses as CIDRs, sorted, without those that lie in an ``allowed`` CIDR."""
    told = [each for node in nodes for each in node.get("status", {}).get("addresses", [])]
    found = {ipaddress.ip_network(each["address"]) for each in told if each["type"] in NODE_ADDRESSES}
    kept = [ipaddress.ip_network(cidr, strict=False) for cidr in allowed]
    return sorted(str(each) for each in found if not any(each.network_address in network for network in kept))


async def _resolved(host: str, port: int) -> list[str]:
    """ADDRESS:PORT of each address; none for a name that only others know."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    addresses = dict.fromkeys(str(entry[4][0]) for entry in found)
    return [f"[{address}]:{port}" if ":" in address else f"{address}:{port}" for address in addresses]
