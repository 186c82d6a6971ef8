"""The engine's waits: a copy that stays old is not read again and again without a pause."""

from types import SimpleNamespace
from typing import Any

import pytest

from tuneloop_operator.kube.errors import ConflictError, NotFoundError
from tuneloop_operator.names import Key
from tuneloop_operator.reconcile.cache import Cache
from tuneloop_operator.reconcile.engine import Engine

KEY = Key("FineTuneJob", "team", "one")
JOB = {"kind": "FineTuneJob", "metadata": {"name": "one", "namespace": "team", "uid": "u", "resourceVersion": "5"}}


class ApiServer:
    """Holds the one object."""

    async def get(self, *_: Any) -> dict[str, Any]:
        return JOB


class Reconciler:
    """Ends as it is told."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    async def reconcile(self, _key: Key, _obj: Any) -> float:
        if self.error:
            raise self.error
        return 7.0

    def forget(self, key: Key) -> None: ...


@pytest.mark.parametrize("error", [ConflictError(409, "Conflict", "old"), NotFoundError(404, "NotFound", "gone")])
async def test_a_copy_that_stays_old_is_looked_at_ever_more_slowly(error: Exception) -> None:
    cache, reconciler = Cache(), Reconciler()
    cache.put(JOB)
    settings, polls = SimpleNamespace(resync_seconds=300.0), SimpleNamespace(forget=lambda _: None)
    context: Any = SimpleNamespace(cache=cache, client=ApiServer(), settings=settings, polls=polls)
    engine = Engine(context, reconciler, reconciler, lambda _: None)
    reconciler.error = error
    waits = [await engine.process(KEY) for _ in range(12)]
    assert waits[0] is not None
    assert waits[0] <= 0.25, "the first time at once: the watch was late"
    assert all(wait is not None and 45 <= wait <= 75 for wait in waits[-3:]), "then a minute, give or take a quarter"
    reconciler.error = None
    assert await engine.process(KEY) == 7.0
    reconciler.error = error
    again = await engine.process(KEY)
    assert again is not None
    assert again <= 0.25, "a look that went well begins the count anew"
