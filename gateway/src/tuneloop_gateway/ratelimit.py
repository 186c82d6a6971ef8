"""Requests and tokens per minute of one key: two token buckets, a reservation before and a settlement after.

Semantics. A bucket holds at most one minute's worth, begins full and refills evenly, so a key may use a minute's worth
at once and then the rate. Each of N ready gateways gives out 1/N of a limit, without asking the others: a key whose
requests all meet one gateway gets less than its limit, never more. What a request will use is not known when it comes,
so it reserves an estimate (``estimate``): its bytes / 4 for the prompt, and the answer tokens that it asks for. When
the answer is whole, the server's own usage settles the account: what was too much goes back, what was too little is
taken and may leave the bucket below zero, and the key waits until it has paid. An answer that failed gives its tokens
back; one that the client left keeps the reservation, or leaving early would be free. A request that was held and met no
server gives all back, itself too. An estimate above a minute's worth waits for a full bucket, so no request is refused
for ever.

Pure: times are seconds of one monotonic clock, given by the caller.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Final

MINUTE: Final = 60.0
BYTES_PER_TOKEN: Final = 4
ANSWER_TOKENS: Final = 256  # reserved for an answer whose length is not bounded by its request
ANSWERS_LIMIT: Final = 128  # vLLM's own most for ``n``; more is refused there
TOKENS_LIMIT: Final = 1_000_000_000


@dataclass(frozen=True)
class Quota:
    """``spec.access.limits``: per minute and key, over all gateways; 0 is no limit."""

    requests: int = 0
    tokens: int = 0


class Bucket:
    """One limit in one gateway."""

    __slots__ = ("_at", "capacity", "level")

    def __init__(self, capacity: float, now: float) -> None:
        self.capacity = self.level = capacity  # a minute's worth
        self._at = now

    def refill(self, now: float) -> None:
        """Add what has come since the last time."""
        self.level = min(self.capacity, self.level + (now - self._at) * self.capacity / MINUTE)
        self._at = now

    def resize(self, capacity: float) -> None:
        """Another share of the limit: as full as before."""
        self.level *= capacity / self.capacity
        self.capacity = capacity

    def put(self, amount: float, now: float) -> None:
        """Give so much back, a minute's worth at most; less than nothing takes it."""
        self.refill(now)
        self.level = min(self.capacity, self.level + amount)

    def wait(self, amount: float) -> float:
        """Seconds until it holds ``amount``, or is full; 0 if it does now."""
        return max(0.0, min(amount, self.capacity) - self.level) * MINUTE / self.capacity

    @property
    def reset(self) -> float:
        """Seconds until it is full."""
        return (self.capacity - self.level) * MINUTE / self.capacity


class Allowance:
    """What one key may still use of one deployment, in one gateway."""

    def __init__(self, quota: Quota, gateways: int, now: float) -> None:
        self.quota = quota
        self._gateways = gateways
        self._requests = Bucket(quota.requests / gateways, now) if quota.requests else None
        self._tokens = Bucket(quota.tokens / gateways, now) if quota.tokens else None

    def share_among(self, gateways: int) -> None:
        """So many gateways are ready now."""
        if gateways == self._gateways:
            return
        self._gateways = gateways
        for bucket, limit in ((self._requests, self.quota.requests), (self._tokens, self.quota.tokens)):
            if bucket is not None:
                bucket.resize(limit / gateways)

    def reserve(self, tokens: int, now: float) -> tuple[str, float]:
        """Take one request and so many tokens; else say what is short (requests, tokens), and for how many seconds."""
        wanted = (("requests", self._requests, 1.0), ("tokens", self._tokens, float(tokens)))
        short, seconds = "", 0.0
        for name, bucket, amount in wanted:
            if bucket is not None:
                bucket.refill(now)
                if bucket.wait(amount) > seconds:
                    short, seconds = name, bucket.wait(amount)
        if not short:
            for _, bucket, amount in wanted:
                if bucket is not None:
                    bucket.level -= amount
        return short, seconds

    def settle(self, reserved: int, used: int, now: float) -> None:
        """The answer is there: it used so many tokens."""
        if self._tokens is not None:
            self._tokens.put(reserved - used, now)

    def give_back(self, reserved: int, now: float) -> None:
        """No server got the request: it counts for nothing."""
        if self._requests is not None:
            self._requests.put(1.0, now)
        self.settle(reserved, 0, now)

    def headers(self) -> bytes:
        """OpenAI's headers, as lines; ``remaining`` is this gateway's part times the gateways, so an estimate."""
        lines = b""
        for name, bucket, limit in (
            (b"requests", self._requests, self.quota.requests),
            (b"tokens", self._tokens, self.quota.tokens),
        ):
            if bucket is not None:
                left = min(limit, max(0, int(bucket.level * self._gateways)))
                values = name, limit, name, left, name, duration(bucket.reset)
                lines += (
                    b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\nx-ratelimit-reset-%b: %b\r\n" % values
                )
        return lines


def duration(seconds: float) -> bytes:
    """As OpenAI words it: ``20ms``, ``7s``, ``6m0s``."""
    if seconds < 1.0:
        return b"%dms" % ceil(max(0.0, seconds) * 1000)
    whole = ceil(seconds)
    return b"%ds" % whole if whole < MINUTE else b"%dm%ds" % divmod(whole, int(MINUTE))


def estimate(fields: Mapping[str, Any], size: int) -> int:
    """Tokens that a request of ``size`` bytes will use, by what it asks for."""
    answer = _count(fields.get("max_completion_tokens")) or _count(fields.get("max_tokens")) or ANSWER_TOKENS
    answers = min(_count(fields.get("n")) or 1, ANSWERS_LIMIT)
    return min(size // BYTES_PER_TOKEN + answer * answers, TOKENS_LIMIT)


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
