"""A model split over two processes is trained, measured and written as it is in one."""

from pathlib import Path
from typing import Any

import pods
import pytest
import torch
from safetensors.torch import load_file
from several import Pods, assert_same_training, set_aside
from tuneloop_core.stages import Stage

from tuneloop_trainer import train

SMALL = {"lora": {"rank": 8, "alpha": 16}}
ADAPTER = "adapter/adapter_model.safetensors"
MODEL = "model/model.safetensors"
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "LoRA": (SMALL, {}, ADAPTER),
    "all weights": ({"adapter": "None"}, {"learningRate": "3e-3"}, MODEL),
    "DoRA": ({"adapter": "DoRA", **SMALL}, {}, MODEL),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_split_model_is_trained_as_a_whole_one(pod: pods.Pod, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    method, training, written = METHODS[name]
    monkeypatch.setattr(train, "PACK_TOKENS", {"cpu": 128})
    pod.check()
    stage_input = {**pod.train_input(**training), "method": method}
    alone = pod.succeed(Stage.TRAIN, stage_input)
    before = set_aside(pod, "alone")
    both = Pods(pod, stage_input | {"nodes": 1, "accelerators": 2, "simulatedAccelerators": True, "shard": True})
    both.start()
    assert both.codes() == [0], both.log(0)[-6000:]
    together = both.said(0).result
    assert together is not None
    assert_same_training(pod, alone, together, before)
    assert_same_tensors(pod.paths.work / "train" / written, before / written)


def assert_same_tensors(found: Path, expected: Path) -> None:
    ours, theirs = load_file(found), load_file(expected)
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert torch.allclose(tensor, theirs[key], atol=1e-3), key
