"""What the operator does when processes, the API server or the watch path fail: the same end state, nothing doubled."""

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from operator_api import Obj, wait_for
from operator_proxy import Proxy, Write
from operator_world import RESULTS, Operator, World
from serving_world import deployment

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def proxy(kubeconfig: Path, tmp_path: Path) -> Iterator[Proxy]:
    with Proxy(kubeconfig, tmp_path) as made:
        yield made


def holder(world: World) -> str:
    found = world.api.get("Lease", world.namespace, "tuneloop-operator")
    return str(found["spec"].get("holderIdentity", "")) if found else ""


def test_sigterm_releases_the_lease_and_the_other_leads(world: World) -> None:
    first = world.start()
    second = world.start(leads=False)
    wait_for("the standby to be ready", lambda: second.health("readyz") == 200, show=second.words)
    assert not second.leads()
    assert first.end() == 0
    wait_for("the second to lead", second.leads, show=second.words)
    assert holder(world) == "pod-1"
    assert second.end() == 0
    assert holder(world) == ""


def test_a_leader_stopped_for_30_s_and_continued_writes_nothing(world: World, proxy: Proxy) -> None:
    first = world.start(kubeconfig=proxy.kubeconfig)
    second = world.start(leads=False)
    world.job()
    world.wait_job("one-fetch")
    first.signal(signal.SIGSTOP)
    stopped = time.monotonic()
    wait_for("the second to lead", second.leads, show=second.words)
    world.job("two")
    world.wait_job("two-fetch")
    time.sleep(max(0.0, 30 - (time.monotonic() - stopped)))
    before = len(proxy.writes)
    first.signal(signal.SIGCONT)
    assert first.process.wait(60) == 70, first.words()
    assert proxy.writes[before:] == []
    world.succeed_stage("fetch")
    world.wait_job("one-check")
    assert holder(world) == "pod-1"


def test_a_short_outage_is_survived(world: World, proxy: Proxy) -> None:
    operator = world.start(kubeconfig=proxy.kubeconfig)
    world.job()
    world.wait_job("one-fetch")
    proxy.cut()
    world.job("two")
    time.sleep(3)
    proxy.mend()
    world.wait_job("two-fetch")
    world.succeed_stage("fetch")
    world.wait_job("one-check")
    assert operator.process.poll() is None, operator.words()
    assert operator.end() == 0


def test_a_long_outage_ends_the_process_and_the_next_goes_on(world: World, proxy: Proxy) -> None:
    operator = world.start(kubeconfig=proxy.kubeconfig)
    world.job()
    world.wait_job("one-fetch")
    proxy.cut()
    assert operator.process.wait(90) == 70, operator.words()
    again = world.start(kubeconfig=proxy.kubeconfig, leads=False, pod="pod-0")
    world.job("two")
    proxy.mend()
    wait_for("the restarted one to lead", again.leads, show=again.words)
    world.wait_job("two-fetch")
    world.succeed_stage("fetch")
    world.wait_job("one-check")


def test_liveness_fails_when_the_watch_path_is_frozen(world: World, proxy: Proxy) -> None:
    operator = world.start(kubeconfig=proxy.kubeconfig, TUNELOOP_FROZEN_SECONDS="12")
    world.job()
    world.wait_job("one-fetch")
    time.sleep(13)
    assert operator.health() == 200, "renewals of the Lease arrive by the watch"
    proxy.frozen = True
    wait_for("liveness to fail", lambda: operator.health() == 500)
    assert operator.leads(), "requests still work, so only liveness tells"
    proxy.frozen = False
    wait_for("liveness to be well again", lambda: operator.health() == 200)


def test_a_watch_that_dies_ends_the_process_and_gives_the_lease_back(world: World, proxy: Proxy) -> None:
    """Such as a role that is missing or late: the successor starts from fresh lists, nobody leads without watches."""
    proxy.forbid = f"/{world.namespace}/pods"
    operator = world.start(kubeconfig=proxy.kubeconfig, leads=False)
    assert operator.process.wait(90) == 1, operator.words()
    assert holder(world) == ""
    proxy.forbid = ""
    world.start(kubeconfig=proxy.kubeconfig, pod="pod-0")
    world.job()
    world.wait_job("one-fetch")


def test_nothing_is_written_once_all_is_calm(world: World) -> None:
    world.settings["resyncSeconds"] = 1.0
    operator = world.start()
    world.job("done")
    for stage in ("fetch", "check", "train", "publish"):
        world.succeed_stage(stage, "done")
    world.wait_condition("Complete", "done")
    world.job("waiting")
    world.wait_job("waiting-fetch")
    world.job("stalled", model={"uri": "hf://org/none"})
    world.fail_stage("fetch", "ModelNotFound", "hf://org/none: there is no such model", "stalled")
    world.wait_condition("Stalled", "stalled")
    deployment(world, "serving", adapters=[{"name": "a", "from": {"fineTuneJob": "waiting"}}])
    world.wait_job("serving-model")
    time.sleep(8)  # what is on its way
    writes, looks = operator.writes(), operator.metric("tuneloop_reconcile_total")
    time.sleep(8)
    assert operator.writes() == writes
    assert operator.metric("tuneloop_reconcile_total") > looks, "it did look again"


class Kubelet(threading.Thread):
    """Ends every Job's pod well, over and over: the Job controller and the kubelet in one."""

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        self._world, self._stopped = world, threading.Event()

    def run(self) -> None:
        done: set[str] = set()
        while not self._stopped.wait(0.1):
            for job in self._world.api.list("Job", self._world.namespace):
                if job["metadata"]["uid"] not in done:
                    done.add(job["metadata"]["uid"])
                    self._end(job)

    def _end(self, job: Obj) -> None:
        stage = job["metadata"]["labels"]["tuneloop.dev/stage"]
        pod = self._world.run_pod(self._world.make_pod(job))
        self._world.end_pod(pod, {"stage": stage, "outcome": "Succeeded", "result": RESULTS[stage]})
        self._world.complete(job)

    def stop(self) -> None:
        self._stopped.set()
        self.join(30)


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_write_it_ends_the_same(world: World, proxy: Proxy, when: str) -> None:
    """Each life gets two writes through: killed before its third, or after its second but before the answer.

    Lives begin where the one before ended, so the two runs cut between all writes of the path.
    """
    kubelet = Kubelet(world)
    kubelet.start()
    lives: list[Operator] = []
    count = 0

    def strike(_write: Write) -> bool:
        nonlocal count
        count += 1
        if count < (3 if when == "before" else 2):
            return True
        lives[-1].process.kill()
        return False

    if when == "before":
        proxy.before_write = strike
    else:
        proxy.after_write = strike
    world.job()
    for _ in range(80):
        count = 0
        lives.append(world.start(kubeconfig=proxy.kubeconfig, leads=False, pod="pod-0"))
        life = lives[-1]
        wait_for(
            "the process to be killed or the job to be complete",
            lambda life=life: life.process.poll() is not None or world.condition("Complete"),
        )
        if world.condition("Complete"):
            break
    world.wait_condition("Complete")
    kubelet.stop()
    status = world.status()
    assert [stage["state"] for stage in status["stages"]] == ["Succeeded"] * 5
    assert status["artifact"]["digest"] == RESULTS["publish"]["digest"]
    jobs = [job["metadata"]["name"] for job in world.api.list("Job", world.namespace)]
    assert sorted(jobs) == ["one-check", "one-fetch", "one-publish", "one-train"]
    made = Counter(write.path for write in proxy.writes if write.method == "POST" and write.status == 201)
    assert made[f"/apis/batch/v1/namespaces/{world.namespace}/jobs"] == 4, json.dumps(made)
    assert made[f"/api/v1/namespaces/{world.namespace}/persistentvolumeclaims"] == 1
    assert len(lives) > 5
