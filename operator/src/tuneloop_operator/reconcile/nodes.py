"""What accelerators the cluster's nodes have, by their labels, where the operator may read nodes. Never a watch."""

import logging
import time

from tuneloop_core.plan.accelerators import NodeGroup
from tuneloop_core.plan.machines import MEMORY_LABEL, PRODUCT_LABEL
from tuneloop_operator.kube.client import Client
from tuneloop_operator.kube.errors import ForbiddenError
from tuneloop_operator.kube.resources import NODES, Obj

logger = logging.getLogger(__name__)

KEPT_SECONDS = 60.0


class Nodes:
    """Nodes with accelerators, read at most once a minute, and only when a job is planned."""

    def __init__(self, client: Client, *, allowed: bool) -> None:
        self._client, self._allowed = client, allowed
        self._groups: tuple[NodeGroup, ...] = ()
        self._read_at = float("-inf")

    async def groups(self) -> tuple[NodeGroup, ...] | None:
        """The nodes that GPU feature discovery labelled; None where nodes may not be read (``scope.readNodes``)."""
        if self._allowed and time.monotonic() - self._read_at >= KEPT_SECONDS:
            await self._read()
        return self._groups if self._allowed else None

    async def _read(self) -> None:
        try:
            found = await self._client.list(NODES, "", labels=PRODUCT_LABEL)
        except ForbiddenError as error:
            logger.warning("plans go by the table, since nodes may not be read: %s", error)
            self._allowed = False
            return
        self._groups, self._read_at = tuple(group_of(node) for node in found), time.monotonic()


def group_of(node: Obj) -> NodeGroup:
    """A node's product, memory in MiB and labels."""
    labels = dict(node["metadata"].get("labels", {}))
    memory = labels.get(MEMORY_LABEL, "")
    return NodeGroup(labels[PRODUCT_LABEL], int(memory) if memory.isdigit() else 0, labels)
