"""Which replica most likely has a prompt's beginning, or an adapter, in its cache: rendezvous hashing, bounded loads.

The same key leads to the same replica on every gateway, without one word between them; a replica that joins takes its
share from all others evenly, and one that leaves gives its own back evenly. The bound is that of "Consistent Hashing
with Bounded Loads" (Mirrokni, Thorup, Zadimoghaddam, 2018): nobody gets more than ``LOAD_FACTOR`` times the mean, so a
popular prompt overflows to the replica that comes next for it instead of drowning its own. Rendezvous, not a ring: at
tens of replicas it is exact, needs no table, and sends what overflows to all others instead of to one neighbour.
Where a replica holds fewer adapters than there are, an adapter's requests first narrow the replicas down to those that
are its own: as few as can bear them, so that each replica meets few adapters; the prompt chooses among these. Pure.
Never keeps a prompt: only 64 bits of its hash leave this module.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from math import ceil
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import orjson

LOAD_FACTOR: Final = 1.25
LIGHT: Final = 4  # requests at once that no replica is too busy with: less felt than an adapter's load from the store
MASK: Final = (1 << 64) - 1


class Seeded(Protocol):
    """A replica: its own 64-bit number, made from its address, and its ongoing requests."""

    seed: int
    ongoing: int


S = TypeVar("S", bound=Seeded)


class Home(NamedTuple):
    """An adapter that replicas may have to load."""

    key: int  # hash64 of its engine name
    requests: int  # of it under way, from this gateway and with the one that is placed now


def hash64(data: bytes) -> int:
    """64 bits of BLAKE2b, the same in every process."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def prompt_key(fields: Mapping[str, Any], engine_name: str, limit: int) -> int | None:
    """The key of a request body: the engine's name, for equal words are another prefix to another adapter, and at most
    ``limit`` bytes of the prompt's beginning.

    Of messages those up to the first of the user count, so all turns of a conversation have one key; of a ``prompt``
    its beginning. None where there is nothing to hash, or ``limit`` is 0.
    """
    start = _beginning(fields, limit) if limit > 0 else b""
    return hash64(engine_name.encode() + b"\0" + start[:limit]) if start else None


def _beginning(fields: Mapping[str, Any], limit: int) -> bytes:
    messages = fields.get("messages")
    if not isinstance(messages, list):
        return _text(fields.get("prompt"), limit)
    parts: list[bytes] = []
    for message in messages:
        if not isinstance(message, dict):
            break
        parts.append(_text(message.get("content"), limit))
        if message.get("role") == "user" or sum(map(len, parts)) >= limit:
            break
    return b"\0".join(parts)


def _text(value: Any, limit: int) -> bytes:
    """The beginning of a text, or of a list of parts or tokens as JSON."""
    if isinstance(value, str):
        return value[:limit].encode("utf-8", "surrogatepass")
    if isinstance(value, list):
        return orjson.dumps(value[:limit])[:limit]
    return b""


def weight(key: int, seed: int) -> int:
    """How much a key wants a replica: SplitMix64's finaliser over both (Steele, Lea, Flood, 2014)."""
    mixed = key ^ seed
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
    return mixed ^ (mixed >> 31)


def bound(ongoing: int, replicas: int) -> int:
    """The most requests that one replica may have once another request has come."""
    return ceil(LOAD_FACTOR * (ongoing + 1) / replicas)


def choose(replicas: Sequence[S], key: int) -> S:
    """The replica that the key wants most among those under the bound; ``replicas`` must not be empty.

    At least one is always under it: not all can have more than the mean.
    """
    most = bound(sum(replica.ongoing for replica in replicas), len(replicas))
    return max((each for each in replicas if each.ongoing < most), key=lambda each: weight(key, each.seed))


def near(replicas: Sequence[S], home: Home) -> list[S]:
    """The replicas that an adapter's request may go to, in no order; never empty where ``replicas`` is not.

    Its own ones come first in its own order, and it has as few as the bound lets take what it has under way. Where
    these are full, the one after them.
    """
    most = max(LIGHT, bound(sum(replica.ongoing for replica in replicas), len(replicas)))
    ranked = sorted(replicas, key=lambda each: weight(home.key, each.seed), reverse=True)
    own = [each for each in ranked[: ceil(home.requests / most)] if each.ongoing < most]
    return own or [next(each for each in ranked if each.ongoing < most)]
