"""Digests that outlive this release: they stand in annotations and statuses, and the next operator compares them.

Made of ``SpecModel.without_defaults()``, never of ``to_dict()``: a field that a later release adds with a default would
change every one of them, and an upgrade would make a new revision of every model. Pure.
"""

import hashlib
import json
from typing import Any


def digest(parts: dict[str, Any]) -> str:
    """``sha256:<hex>`` of a JSON object, whatever the order of its keys."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
