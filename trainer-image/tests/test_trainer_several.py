"""A job of several processes: the same training as one process's, and one process's end is every one's."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import patient_pair
import pods
import pytest
import stores
import torch
from rows import classes, preferences, thumbs
from safetensors.torch import load_file
from several import Pods, assert_same_training, losses, set_aside
from tuneloop_core.stages import Stage

from tuneloop_trainer import train
from tuneloop_trainer.batches import pack, spread
from tuneloop_trainer.files import is_whole

EVERY_STEP = {"interval": "1ms", "keep": 2}


@pytest.fixture
def two(pod: pods.Pod, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pods]:
    """Two pods of one process each, and beside them what one pod did: its folder ``alone``, its ``result``."""
    monkeypatch.setattr(train, "PACK_TOKENS", {"cpu": 128})
    pod.check()
    found = Pods(pod, pod.train_input() | {"nodes": 2, "checkpoint": EVERY_STEP})
    yield found
    found.kill()


def assert_saved_once(two: Pods) -> None:
    """What was saved as a step ended is not saved again as all of training ends, or is told to."""
    written = re.findall(r"checkpoint (\S+) written", two.log(0))
    assert written
    assert len(written) == len(set(written))


def test_two_pods_train_as_one_and_go_on_when_one_is_killed(two: Pods, pod: pods.Pod) -> None:
    alone = pod.succeed(Stage.TRAIN, pod.train_input())
    before = set_aside(pod, "alone")
    two.start(driven={1: ("kill", 14)})
    assert two.codes() == [77, 137], two.log(0)[-2000:]
    assert two.said(0).reason == "PeerLost"
    reached = losses(pod)[-1][0]
    assert 0 < reached < alone["steps"]

    together = two.finish()
    assert together["resumes"] == 1
    assert_saved_once(two)
    assert_same_training(pod, alone, together, before)
    assert not (two.root(1) / "dev/termination-log").exists(), "only the leader answers"
    two.start()  # a finished job is answered from its result, by every pod, without a meeting
    assert two.codes() == [0, 0]
    assert two.said(0).result == together


SMALL = {"lora": {"rank": 8, "alpha": 16}}
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]] = {
    "KTO, all weights": ({"objective": "KTO", "adapter": "None"}, {"packing": False}, thumbs()),
    "DPO, QLoRA, merged": (
        {"objective": "DPO", "adapter": "QLoRA", "merge": True, **SMALL},
        {"packing": False},
        preferences(),
    ),
    "classes, DoRA": ({"task": "SequenceClassification", "adapter": "DoRA", **SMALL}, {}, classes()),
}


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_in_one_pod_train_every_method_as_one_does(
    bare_pod: pods.Pod, tiny: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pod, (method, training, rows) = bare_pod, METHODS[name]
    monkeypatch.setattr(train, "PACK_TOKENS", {"cpu": 128})
    shutil.copytree(tiny, pod.paths.model, dirs_exist_ok=True)
    pod.write_dataset(*rows)
    stage_input = {**pod.train_input(tokensPerStep=256, learningRate="3e-3", epochs=1, **training), "method": method}
    pod.succeed(Stage.CHECK, {**pod.check_input(stage_input["training"]), "method": method})
    alone = pod.succeed(Stage.TRAIN, stage_input)
    before = set_aside(pod, "alone")
    both = Pods(pod, stage_input | {"nodes": 1, "accelerators": 2, "simulatedAccelerators": True})
    both.start()
    assert both.codes() == [0], both.log(0)[-3000:]
    together = both.said(0).result
    assert together is not None
    assert_same_training(pod, alone, together, before)
    assert alone["steps"] > 2
    assert is_whole(pod.paths.work / "train/model")
    written, expected = (load_file(path / "model/model.safetensors") for path in (pod.paths.work / "train", before))
    assert written.keys() == expected.keys()
    for key, weight in written.items():
        assert torch.allclose(weight, expected[key], atol=1e-3), key


def test_sigterm_of_any_pod_saves_whole_steps(two: Pods, pod: pods.Pod) -> None:
    two.start(driven={1: ("term", 6)})
    assert two.codes() == [143, 143], two.log(0)[-3000:] + two.log(1)[-3000:]
    assert two.said(0).reason == "Terminated"
    saved = sorted(path.name for path in (pod.paths.work / "train/checkpoints").glob("step-*"))
    assert saved
    assert not any("." in name for name in saved), "of whole steps"
    assert_saved_once(two)


def test_who_waits_for_the_leader_to_write_waits_longer_than_for_a_message(tmp_path: Path) -> None:
    assert patient_pair.both(tmp_path, int(stores.free_address().rpartition(":")[2])) == [0, 0]


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_a_step_is_the_same_whatever_the_number_of_ranks(ranks: int) -> None:
    lengths = np.random.default_rng(3).integers(5, 300, 60)
    for packing in (True, False):
        rounds = spread(np.arange(60), lengths, 512, packing, ranks)
        assert all(len(packs) == ranks for packs in rounds)
        assert sorted(n for packs in rounds for each in packs for n in each) == list(range(60))
        if packing:
            assert all(lengths[each].sum() <= 512 for packs in rounds for each in packs)
            assert len(rounds) <= -(-len(pack(np.arange(60), lengths, 512, True)) // ranks) + 1


def test_documents_that_are_longer_than_a_pack_and_ranks_without_one() -> None:
    assert spread(np.array([0]), np.array([9999]), 512, True, 2) == [[[0], []]]
    assert spread(np.arange(3), np.array([700, 10, 20]), 512, True, 2) == [[[0], [2, 1]]], "longest first"
