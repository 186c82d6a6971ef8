"""Queue, cache, inbox, Lease, quantities, status patches: what carries the decisions."""

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import pytest

from tuneloop_operator.build.quantities import parse, resources, threads
from tuneloop_operator.kube.errors import ApiUnavailableError, ConflictError, NotFoundError, WritesFencedError, error_of
from tuneloop_operator.kube.lease import Lease, LeaseTimes, Moment
from tuneloop_operator.kube.resources import JOBS, Obj, Resource
from tuneloop_operator.names import Key
from tuneloop_operator.policy.drift import is_applied
from tuneloop_operator.reconcile.cache import Cache, trim
from tuneloop_operator.reconcile.heartbeat import Heartbeat
from tuneloop_operator.reconcile.inbox import Inbox
from tuneloop_operator.reconcile.namespaces import with_digest
from tuneloop_operator.reconcile.queue import KeyedQueue, backoff
from tuneloop_operator.reconcile.status import merge_diff

KEY = Key("FineTuneJob", "team", "one")
OTHER = Key("FineTuneJob", "team", "two")


# ---- queue ----


async def until(probe: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not probe():  # noqa: ASYNC110 - a plain condition
            await asyncio.sleep(0.001)


async def running(process: Callable[[Key], Awaitable[float | None]]) -> KeyedQueue:
    queue = KeyedQueue(process, workers=4)
    queue.start()
    return queue


async def test_a_key_is_worked_on_by_one_worker_and_again_when_it_came_up_meanwhile() -> None:
    active, most, runs = 0, 0, 0
    go = asyncio.Event()

    async def process(_key: Key) -> None:
        nonlocal active, most, runs
        active, runs = active + 1, runs + 1
        most = max(most, active)
        await go.wait()
        active -= 1

    queue = await running(process)
    queue.add(KEY)
    await until(lambda: active == 1)
    for _ in range(5):
        queue.add(KEY)
    go.set()
    await until(lambda: runs == 2 and active == 0)
    assert most == 1
    await queue.stop()


async def test_other_keys_are_not_held_up() -> None:
    hang, seen = asyncio.Event(), []

    async def process(key: Key) -> None:
        seen.append(key)
        if key == KEY:
            await hang.wait()

    queue = await running(process)
    queue.add(KEY)
    queue.add(OTHER)
    await until(lambda: OTHER in seen)
    hang.set()
    await queue.stop()


async def test_a_failure_comes_back_and_a_delay_is_kept() -> None:
    runs = 0

    async def process(_key: Key) -> float | None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise ApiUnavailableError("away")
        return 0.01 if runs == 2 else None

    queue = await running(process)
    queue.add(KEY)
    await until(lambda: runs == 3)
    await queue.stop()


async def test_the_earlier_of_two_delayed_looks_wins() -> None:
    runs = 0

    async def process(_key: Key) -> None:
        nonlocal runs
        runs += 1

    queue = await running(process)
    queue.add_after(KEY, 3600)
    queue.add_after(KEY, 0.01)
    queue.add_after(KEY, 1800)
    await until(lambda: runs == 1)
    await queue.stop()


def test_backoff_doubles_to_a_minute() -> None:
    assert [backoff(n, 0.5) for n in (1, 2, 3, 100)] == [0.2, 0.4, 0.8, 60.0]
    assert backoff(1, 0.0) < backoff(1, 0.99)


# ---- cache and inbox ----


def child(version: int, kind: str = "Job", uid: str = "u", owner: str = "one", **more: Any) -> Obj:
    labels = {"tuneloop.dev/finetunejob": owner}
    metadata = {"name": "x", "namespace": "team", "uid": uid, "resourceVersion": str(version), "labels": labels}
    return {"kind": kind, "apiVersion": "v1", "metadata": metadata} | more


def test_the_newer_version_wins() -> None:
    cache = Cache()
    cache.put(child(5))
    assert cache.put(child(4))["metadata"]["resourceVersion"] == "5"
    assert cache.children(KEY, "Job")[0]["metadata"]["resourceVersion"] == "5"
    cache.remove(child(9, uid="other"))
    assert len(cache) == 1
    cache.remove(child(9))
    assert len(cache) == 0
    assert cache.children(KEY, "Job") == []


def test_what_went_does_not_come_back_by_the_late_answer_of_a_write() -> None:
    cache = Cache()
    cache.remove(child(6))  # the watch told that it went before the write that made it had its answer
    cache.put(child(5))
    assert cache.children(KEY, "Job") == []
    cache.put(child(5, uid="next"))  # another of the name
    assert [obj["metadata"]["uid"] for obj in cache.children(KEY, "Job")] == ["next"]
    cache.remove(child(7, uid="next"))
    cache.put(child(8, uid="next"))  # it had only left the watch's selector
    assert [obj["metadata"]["uid"] for obj in cache.children(KEY, "Job")] == ["next"]


def test_objects_are_trimmed() -> None:
    containers = [{"name": "main", "image": "i", "env": ["secret"], "resources": {}}]
    pod = child(1, "Pod", spec={"containers": containers, "volumes": []})
    pod["metadata"] |= {"managedFields": [1], "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "x"}}
    trimmed = trim(pod)
    assert "managedFields" not in trimmed["metadata"]
    assert trimmed["metadata"]["annotations"] == {}
    assert trimmed["spec"]["containers"] == [{"name": "main", "image": "i", "resources": {}}]


def test_the_inbox_wakes_the_owner_once_and_not_for_our_own_write() -> None:
    cache, woken = Cache(), []
    inbox = Inbox(cache, woken.append, lambda _obj: (OTHER,))
    inbox.see(child(1))
    inbox.wake(child(1))
    inbox.wake(child(1))
    assert woken == [KEY]
    cache.put(child(2))
    inbox.see(child(2))
    inbox.wake(child(2))
    assert woken == [KEY], "seen already"
    inbox.gone(child(3))
    assert woken == [KEY, KEY]
    custom = child(4, "FineTuneJob")
    custom["metadata"]["name"] = "one"
    inbox.see(custom)
    inbox.wake(custom)
    assert woken[2:] == [KEY, OTHER], "itself, and who depends on it"


def test_heartbeat() -> None:
    heart = Heartbeat("lease", "me", frozen_after=-1.0)
    assert not heart.expected
    assert heart.age() == 0.0
    heart.start()
    assert heart.frozen()
    calm = Heartbeat("lease", "me")
    calm.start()
    calm.seen({"spec": {"holderIdentity": "me"}})
    assert not calm.frozen()


# ---- status ----


def test_merge_patch_of_a_difference() -> None:
    old = {"a": 1, "gone": 2, "nested": {"x": 1, "y": 2}, "same": {"z": 1}, "list": [1, 2]}
    new = {"a": 1, "nested": {"x": 1, "y": 3}, "same": {"z": 1}, "list": [1], "new": {}}
    assert merge_diff(old, new) == {"gone": None, "nested": {"y": 3}, "list": [1], "new": {}}
    assert merge_diff(new, new) == {}


def test_applied_manifests_are_known_by_their_digest() -> None:
    manifest = with_digest({"metadata": {"name": "x"}, "spec": {"a": 1}})
    assert is_applied(manifest, manifest)
    assert not is_applied(manifest, with_digest({"metadata": {"name": "x"}, "spec": {"a": 2}}))
    assert not is_applied(manifest, {"metadata": {}})
    assert not is_applied(manifest, None)


def test_errors_carry_the_servers_words() -> None:
    error = error_of(409, {"reason": "AlreadyExists", "message": "it exists"}, None)
    assert isinstance(error, ConflictError)
    assert "it exists" in str(error)
    assert error_of(429, "busy", "7").retry_after == 7.0
    assert JOBS.path("team", "x", "status") == "/apis/batch/v1/namespaces/team/jobs/x/status"


# ---- quantities ----


@pytest.mark.parametrize(
    ("text", "number"),
    [("500m", "0.5"), ("2", "2"), ("4Gi", str(4 * 2**30)), ("1e3", "1000"), (3, "3"), ("1.5k", "1500")],
)
def test_quantities(text: int | str, number: str) -> None:
    assert parse(text) == Decimal(number)


def test_a_quantity_that_is_none_says_so() -> None:
    with pytest.raises(ValueError, match='"lots" is not a quantity'):
        parse("lots")


def test_a_default_request_never_exceeds_the_users_limit_nor_a_default_limit_the_request() -> None:
    defaults = {"requests": {"cpu": "1", "memory": "4Gi"}, "limits": {"memory": "8Gi"}}
    small = resources(defaults, {}, {"memory": "2Gi", "cpu": "500m"}, {})
    assert small == {
        "requests": {"cpu": "500m", "memory": "2Gi"},
        "limits": {"memory": "2Gi", "cpu": "500m"},
    }
    large = resources(defaults, {"memory": "16Gi"}, {}, {"nvidia.com/gpu": 2})
    assert large["limits"] == {"memory": "16Gi", "nvidia.com/gpu": "2"}
    assert large["requests"] == {"cpu": "1", "memory": "16Gi", "nvidia.com/gpu": "2"}


def test_threads_follow_the_limit() -> None:
    assert [threads(limits) for limits in ({"cpu": "3500m"}, {"cpu": "100m"}, {})] == [3, 1, None]


# ---- lease ----


class FakeServer:
    """One Lease with optimistic concurrency; ``away`` makes it unreachable."""

    def __init__(self) -> None:
        self.lease: Obj | None = None
        self.version = 0
        self.away = False

    async def get(self, resource: Resource, namespace: str, name: str) -> Obj:
        self._reach()
        if self.lease is None:
            raise NotFoundError(404, "NotFound", "")
        return self.lease

    async def create(self, resource: Resource, body: Obj) -> Obj:
        self._reach()
        if self.lease is not None:
            raise ConflictError(409, "AlreadyExists", "")
        return self._store(body)

    async def replace(self, resource: Resource, body: Obj) -> Obj:
        self._reach()
        assert self.lease is not None
        if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise ConflictError(409, "Conflict", "")
        return self._store(body)

    def _reach(self) -> None:
        if self.away:
            raise ApiUnavailableError("away")

    def _store(self, body: Obj) -> Obj:
        self.version += 1
        self.lease = body | {"metadata": body["metadata"] | {"resourceVersion": str(self.version)}}
        return self.lease


class Clock:
    """Two clocks that the test turns."""

    def __init__(self) -> None:
        self.running = self.wall = 1000.0

    def __call__(self) -> Moment:
        return Moment(self.running, self.wall)

    def turn(self, seconds: float) -> None:
        self.running += seconds
        self.wall += seconds


TIMES = LeaseTimes(duration=20, margin=4, renew_every=0.001, request_timeout=1.0, retry_every=0.001)


def candidate(server: FakeServer, name: str, clock: Clock) -> Lease:
    return Lease(server, "system", "lease", name, TIMES, clock)


async def test_one_leads_and_the_other_takes_over_after_the_duration() -> None:
    server, clock = FakeServer(), Clock()
    first, second = candidate(server, "first", clock), candidate(server, "second", clock)
    with pytest.raises(WritesFencedError):
        first.check()
    await first.acquire()
    first.check()
    waiting = asyncio.create_task(second.acquire())
    await asyncio.sleep(0.02)
    assert not waiting.done()
    clock.turn(21)
    await asyncio.wait_for(waiting, 20)
    second.check()
    assert server.lease is not None
    assert server.lease["spec"]["leaseTransitions"] == 1
    with pytest.raises(WritesFencedError):
        first.check()
    await asyncio.wait_for(first.hold(), 20)  # returns: it is lost


async def test_a_stopped_process_may_not_write_when_it_goes_on() -> None:
    clock = Clock()
    lease = candidate(FakeServer(), "me", clock)
    await lease.acquire()
    clock.running += 30  # SIGSTOP, or a machine that slept
    with pytest.raises(WritesFencedError):
        lease.check()
    clock.running -= 30
    clock.wall += 30
    with pytest.raises(WritesFencedError):
        lease.check()


async def test_an_api_server_that_is_away_costs_the_lease_only_after_the_margin() -> None:
    server, clock = FakeServer(), Clock()
    lease = candidate(server, "me", clock)
    await lease.acquire()
    server.away = True
    holding = asyncio.create_task(lease.hold())
    await asyncio.sleep(0.02)
    assert not holding.done()
    lease.check()
    clock.turn(17)
    await asyncio.wait_for(holding, 20)
    with pytest.raises(WritesFencedError):
        lease.check()


async def test_an_answer_that_was_lost_is_not_a_loss() -> None:
    server, clock = FakeServer(), Clock()
    lease = candidate(server, "me", clock)
    await lease.acquire()
    assert server.lease is not None
    server._store(server.lease)  # a renewal of ours arrived, its answer did not
    holding = asyncio.create_task(lease.hold())
    before = server.version
    await until(lambda: server.version > before + 2)
    assert not holding.done()
    holding.cancel()


async def test_release_lets_the_next_one_in_at_once() -> None:
    server, clock = FakeServer(), Clock()
    first, second = candidate(server, "first", clock), candidate(server, "second", clock)
    await first.acquire()
    await first.release()
    with pytest.raises(WritesFencedError):
        first.check()
    await asyncio.wait_for(second.acquire(), 20)
    second.check()
