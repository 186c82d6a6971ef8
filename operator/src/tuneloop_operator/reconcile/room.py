"""Ends pods that leave where their room is what held requests wait for. Never decides when."""

from collections.abc import Mapping

from tuneloop_core.api.modeldeployment import ModelDeployment
from tuneloop_operator.kube.resources import Obj
from tuneloop_operator.names import Key
from tuneloop_operator.policy import drains
from tuneloop_operator.policy.drains import LAST_SECONDS, Held
from tuneloop_operator.reconcile.context import Context
from tuneloop_operator.reconcile.servers import pods_of

LOOK_SECONDS = 3.0  # whether anybody waits: gateways say so without waking a reconcile


async def make_room(context: Context, key: Key, deployment: ModelDeployment, found: Mapping[int, Obj]) -> float | None:
    """One look; seconds until the next where pods that leave keep the room, else None. ApiError."""
    going = drains.blocking(pods_of(context.cache, key), found)
    if not going:
        return None
    start, hold = drains.start_seconds(deployment.status.cold_start), context.settings.gateway.hold
    held = Held.of(context.gateways.loads(key).values(), hold.max_seconds, start)
    for pod in drains.due(going, held):
        metadata = pod["metadata"]
        await context.client.shorten(metadata["namespace"], metadata["name"], metadata["uid"], LAST_SECONDS)
    return LOOK_SECONDS
