"""Which Secrets a spec may name, where the chart narrows them. Pure; never reads a Secret.

A Secret's key goes to the server that the spec names, so whoever may write a spec could send any Secret of the
namespace with a fitting key anywhere.
"""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from tuneloop_core.api.base import SpecModel

FIELD = "credentialsSecret"


class SecretNotAllowedError(Exception):
    """A spec names a Secret that this installation keeps from pods."""

    expected = True


def require_allowed(spec: SpecModel, patterns: Sequence[str]) -> None:
    """Raise ``SecretNotAllowedError`` for the first Secret that fits none of the patterns; none allow all."""
    for path, name in named(spec.to_dict()):
        if patterns and not any(fnmatchcase(name, pattern) for pattern in patterns):
            raise SecretNotAllowedError(
                f"{path} names Secret {name}, and here pods may mount only {', '.join(patterns)}: name one of those, "
                "or have the administrator add it to secrets.allowedNames of the chart"
            )


def named(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(field, Secret) of every ``credentialsSecret`` in a spec, such as ``spec.dataset.credentialsSecret``."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from named(item, f"{path}[{number}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            here = f"{path}.{key}" if path else key
            if key == FIELD and item:
                yield here, item
            else:
                yield from named(item, here)
