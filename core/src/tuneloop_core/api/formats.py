"""The string formats of the API: durations, decimals, quantities, names.

Each is a pattern for pydantic plus the words a user reads; the generator turns both into one CEL rule, so that
``kubectl apply`` answers in words rather than with a regular expression. Decimal numbers in a spec are strings:
YAML tools disagree on ``2e-4`` (PyYAML reads a string, Go a number), and a quoted one comes back as it was written.
Patterns are RE2 without look-around, which Go, CEL and pydantic read alike. Never does I/O.
"""

import math
import re
from typing import Annotated, Any, Final

from pydantic import Field

from tuneloop_core.api.base import cel

PATTERN_WORDS: Final = "x-tuneloop-pattern-words"

_UNIT_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
DURATION_PATTERN: Final = "^([0-9]{1,6}([.][0-9]{1,3})?(ms|s|m|h)){1,4}$"
DECIMAL_PATTERN: Final = "^[0-9]{1,12}([.][0-9]{1,12})?([eE][-+]?[0-9]{1,2})?$"
SUBDOMAIN_PATTERN: Final = r"^$|^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"


def _worded(pattern: str, words: str, max_length: int) -> Any:
    """A bounded string with a pattern and the sentence that explains it."""
    return Field(pattern=pattern, max_length=max_length, json_schema_extra={PATTERN_WORDS: words})


Duration = Annotated[
    str, _worded(DURATION_PATTERN, 'must be a duration such as "500ms", "30s", "10m", "4h" or "1h30m"', 32)
]
Decimal = Annotated[
    str, _worded(DECIMAL_PATTERN, 'must be a non-negative decimal number in quotes, such as "0.1" or "2e-4"', 32)
]
ResourceName = Annotated[
    str,
    _worded(
        SUBDOMAIN_PATTERN,
        "must be an object's name: lower-case letters, digits, '-' and '.', with a letter or digit at both ends",
        253,
    ),
]
JobName = Annotated[
    str,
    _worded(
        r"^[a-z]([-a-z0-9]{0,48}[a-z0-9])?$",
        "must be the name of a FineTuneJob in this namespace: at most 50 lower-case letters, digits and '-'",
        50,
    ),
]
Quantity = Annotated[
    int | str,
    Field(union_mode="left_to_right"),
]
Timestamp = Annotated[str, Field(max_length=40, json_schema_extra={"format": "date-time"})]


def decimal_rule(condition: str, message: str) -> dict[str, str]:
    """CEL on a Decimal, such as ``double(self) > 0.0``; silent on what is no decimal."""
    return cel(f"!self.matches('{DECIMAL_PATTERN}') || ({condition})", message)


def duration_rule(condition: str, message: str) -> dict[str, str]:
    """CEL on a Duration, such as ``duration(self) > duration('0s')``; silent while the text is no duration."""
    return cel(f"!self.matches('{DURATION_PATTERN}') || ({condition})", message)


def parse_duration(text: str) -> float:
    """Seconds of a duration such as ``500ms``, ``10m`` or ``1h30m``.

    Raises ValueError that names what was found and what would be right.
    """
    if not re.fullmatch(DURATION_PATTERN, text):
        raise ValueError(f'"{text}" is not a duration; write it such as "500ms", "30s", "10m", "4h" or "1h30m"')
    parts = re.findall(r"([0-9.]+)(ms|s|m|h)", text)
    return math.fsum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)


def format_duration(seconds: float) -> str:
    """A duration for people, which ``parse_duration`` reads: ``48.2ms``, ``42s``, ``3m10s``, ``2h5m``."""
    if seconds < 1:
        return f"{round(seconds * 1000, 1):g}ms"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}h{minutes}m" if minutes else f"{hours}h"
    if minutes:
        return f"{minutes}m{rest}s" if rest else f"{minutes}m"
    return f"{rest}s"


def format_latency(seconds: float) -> str:
    """A latency in milliseconds, as ``spec.slo`` writes it: ``48.2ms``, ``1250ms``."""
    return f"{round(seconds * 1000, 1) if seconds < 0.1 else round(seconds * 1000):g}ms"


def parse_decimal(text: str) -> float:
    """The number of a decimal string such as ``0.1`` or ``2e-4``; ValueError with words otherwise."""
    if not re.fullmatch(DECIMAL_PATTERN, text):
        raise ValueError(f'"{text}" is not a non-negative decimal number; write it in quotes, such as "0.1" or "2e-4"')
    return float(text)
