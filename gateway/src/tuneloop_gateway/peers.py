"""How many gateways are ready, by the EndpointSlices of their own Service: limits per key are divided by that.

Pure. Never less than one, for whoever asks is a gateway.
"""

from collections.abc import Iterable

from tuneloop_gateway.routes import Slice


def ready_gateways(slices: Iterable[Slice], service: str) -> int:
    """Different ready addresses behind the Service."""
    return max(1, len({host for each in slices if each.service == service for host, _ in each.addresses}))
