"""Kubernetes quantities and the requests and limits made of them. Never rounds down what a user asked for."""

import math
import re
from collections.abc import Mapping
from decimal import Decimal

_SUFFIXES = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}
_PATTERN = re.compile(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")

Amounts = Mapping[str, int | str]


def parse(quantity: int | str) -> Decimal:
    """The number of a quantity such as ``500m`` or ``2Gi``; ValueError names what is wrong."""
    found = _PATTERN.fullmatch(str(quantity))
    if found is None:
        raise ValueError(f'"{quantity}" is not a quantity; write it such as "500m", "2" or "4Gi"')
    return Decimal(found[1]) * _SUFFIXES[found[2] or ""]


def resources(
    defaults: Mapping[str, Amounts], requests: Amounts, limits: Amounts, devices: Amounts
) -> dict[str, dict[str, str]]:
    """Requests and limits: the user's where given, else ours; a default request never exceeds a limit.

    ``devices`` (extended resources) stand in both, as the API server wants them.
    """
    wanted = {key: str(value) for key, value in {**defaults["limits"], **limits, **devices}.items()}
    for key, value in requests.items():  # a default limit never undercuts a request
        if key not in limits and key in wanted and parse(value) > parse(wanted[key]):
            wanted[key] = str(value)
    asked = {key: str(value) for key, value in {**defaults["requests"], **requests, **devices}.items()}
    for key in set(asked) - set(requests):
        if key in wanted and parse(asked[key]) > parse(wanted[key]):
            asked[key] = wanted[key]
    return {"requests": asked, "limits": wanted}


def threads(limits: Amounts) -> int | None:
    """Threads that a CPU limit pays for, at least one; None without a limit (the runtime then takes the node's)."""
    return max(1, math.floor(parse(limits["cpu"]))) if "cpu" in limits else None
