"""A job of two pods: it trains as one pod does, and when one of the two is killed, both go on from the checkpoint."""

from typing import Any

import pytest
from e2e_kube import Kube, is_true
from e2e_node import kill_container
from e2e_training import TrainStage
from e2e_world import NAMESPACE, fine_tune_job, pods_of

pytestmark = pytest.mark.usefixtures("world")
STEPS = 60
INDEX = "batch.kubernetes.io/job-completion-index"


def test_two_pods_train_as_one_and_go_on_together(kube: Kube) -> None:
    together = fine_tune_job("pair", steps=STEPS)
    together["spec"]["resources"]["nodes"] = 2
    together["spec"]["checkpoint"]["interval"] = "1s"
    kube.apply(fine_tune_job("solo", steps=STEPS))
    kube.apply(together)

    TrainStage(kube, "pair").next_pod()  # slowed down, and with it the other: they take each step together
    kube.wait_for("a checkpoint of 'pair'", lambda: (_status(kube, "pair").get("checkpoint") or {}).get("step"))
    pods = {pod["metadata"]["labels"][INDEX]: pod for pod in pods_of(kube, "pair", "train")}
    assert sorted(pods) == ["0", "1"]
    assert kube.get("service", "pair-train", NAMESPACE), "the pods have names by a headless Service"
    assert kill_container(pods["1"]), "no process of the second pod was found"

    before, after = {pod["metadata"]["uid"] for pod in pods.values()}, set[str]()
    for name in ("solo", "pair"):

        def complete(name: str = name) -> bool:
            after.update(_indexes(kube, but=before))
            return is_true(kube.get("ftj", name, NAMESPACE), "Complete")

        kube.wait_for(f"'{name}' to complete", complete, explain=lambda name=name: str(_status(kube, name)))
    solo, pair = _status(kube, "solo"), _status(kube, "pair")
    assert pair["resumes"] == 1
    assert pair["usage"]["trainSeconds"] > 0
    assert [point["step"] for point in pair["curve"]] == [point["step"] for point in solo["curve"]]
    expected = [point["loss"] for point in solo["curve"]]
    # Where the processor has bfloat16 units both round to it, each in the order of its own packs.
    assert [point["loss"] for point in pair["curve"]] == pytest.approx(expected, rel=0.05, abs=0.05)
    assert pair["evaluation"]["tuned"]["evalLoss"] == pytest.approx(solo["evaluation"]["tuned"]["evalLoss"], rel=0.05)
    assert after == {"0", "1"}, "both pods were made anew (the second may be removed as soon as the first has ended)"


def _indexes(kube: Kube, but: set[str]) -> set[str]:
    """The pods of the pair that are there and are not these, by their numbers."""
    found = kube.list("pods", NAMESPACE, "tuneloop.dev/finetunejob=pair,tuneloop.dev/stage=train")
    return {pod["metadata"]["labels"][INDEX] for pod in found if pod["metadata"]["uid"] not in but}


def _status(kube: Kube, name: str) -> dict[str, Any]:
    status: dict[str, Any] = (kube.get("ftj", name, NAMESPACE) or {}).get("status") or {}
    return status
