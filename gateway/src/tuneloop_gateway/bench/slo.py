"""Latency objectives as a user writes them: ``ttft=500ms,tpot=50ms``. Pure."""

from collections.abc import Mapping

from tuneloop_core.api.formats import parse_duration

Objectives = Mapping[str, float]  # metric -> seconds a request may take at most
NAMES = ("ttft", "tpot", "e2e")


def parse(text: str) -> Objectives:
    """Objectives by metric, in seconds; empty for an empty text.

    Raises:
        ValueError: an unknown metric, one named twice, or a time that is no duration.
    """
    found: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in NAMES:
            raise ValueError(f"{part!r}: write METRIC=TIME with a metric of {', '.join(NAMES)}, such as ttft=500ms")
        if name in found:
            raise ValueError(f"{name} is named twice")
        found[name] = _seconds(part, value)
    return found


def _seconds(part: str, value: str) -> float:
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise ValueError(f"{part!r}: {value!r} is no time; write for instance 500ms or 1.5s") from error
    if seconds <= 0:
        raise ValueError(f"{part!r}: the time must be above 0")
    return seconds
