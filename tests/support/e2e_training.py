"""Training as the e2e tier disturbs it: one pod after the other of a job's train stage, by what their logs say.

The log is what is asked, not the status: it is written at every step, the status at most every few seconds.
"""

import logging
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from e2e_kube import Kube
from e2e_node import slow_down
from e2e_world import NAMESPACE, pods_of

log = logging.getLogger(__name__)

CRAWL = 0.1  # of a processor: the tiny model would be trained before a test met it
STEP = re.compile(r" step (\d+)/")
RESUMED = re.compile(r"going on from step (\d+) of")
CHECKPOINT = re.compile(r"checkpoint step-(\d+)(?:\.\d+)? written")


@dataclass
class TrainPod:
    """One pod of a train stage, met at its first step and slowed down."""

    kube: Kube
    name: str
    uid: str

    @property
    def log(self) -> str:
        """All that it has said."""
        return self.kube.run("logs", self.name, "-n", NAMESPACE)

    @property
    def steps(self) -> list[int]:
        """The steps that it has done, in the order in which it did them."""
        return [int(step) for step in STEP.findall(self.log)]

    @cached_property
    def resumed_from(self) -> int:
        """The step that its checkpoint stood at; 0 when there was none."""
        found = RESUMED.search(self.log)
        return int(found[1]) if found else 0

    @property
    def checkpoint(self) -> int:
        """The step of the last checkpoint that it has written, else of the one that it began with."""
        found = CHECKPOINT.findall(self.log)
        return int(found[-1]) if found else self.resumed_from

    @property
    def object(self) -> dict[str, Any]:
        """As the API server knows it now."""
        found = self.kube.get("pod", self.name, NAMESPACE)
        assert found, f"pod {self.name} is gone"
        return found

    def train_some(self) -> "TrainPod":
        """Wait until it has written a checkpoint of its own and gone on for three steps."""
        first = self.checkpoint

        def went_on() -> bool:
            return bool(CHECKPOINT.search(self.log)) and self.steps[-1] >= max(self.checkpoint, first) + 3

        self.kube.wait_for(f"pod {self.name} to train beyond a checkpoint", went_on, interval=0.5, explain=self._tail)
        return self

    def _tail(self) -> str:
        return self.log[-2000:]


@dataclass
class TrainStage:
    """The train stage of one job; each pod of it is met once."""

    kube: Kube
    job: str
    met: set[str] = field(default_factory=set)

    def next_pod(self) -> TrainPod:
        """Wait for a pod that was not met yet to do its first step, and slow it down."""
        words = f"the next training pod of '{self.job}' to do a step"
        pod: TrainPod = self.kube.wait_for(words, self._new_pod, interval=0.5, explain=lambda: str(self.status))
        assert slow_down(pod.object, CRAWL), "no cgroup of the training pod was found"
        self.met.add(pod.uid)
        log.info("%s: pod %s began at step %d", self.job, pod.name, pod.resumed_from)
        return pod

    def _new_pod(self) -> TrainPod | None:
        for found in pods_of(self.kube, self.job, "train"):
            pod = TrainPod(self.kube, found["metadata"]["name"], found["metadata"]["uid"])
            ready = found["status"]["phase"] == "Running" and not found["metadata"].get("deletionTimestamp")
            if ready and pod.uid not in self.met and STEP.search(self._log(pod)):
                return pod
        return None

    def _log(self, pod: TrainPod) -> str:
        return self.kube.run("logs", pod.name, "-n", NAMESPACE, check=False)

    def suspend(self, wanted: bool) -> None:
        """Set spec.suspend."""
        patch = f'{{"spec": {{"suspend": {str(wanted).lower()}}}}}'
        self.kube.run("patch", "ftj", self.job, "-n", NAMESPACE, "--type=merge", "-p", patch)

    @property
    def status(self) -> dict[str, Any]:
        """The job's status."""
        found: dict[str, Any] = (self.kube.get("ftj", self.job, NAMESPACE) or {}).get("status") or {}
        return found
