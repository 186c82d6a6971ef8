"""A model that is split over two processes is trained, measured, kept and written as one in one piece."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pods
import pytest
import split_pair
import stores
import torch
from rows import thumbs
from safetensors.torch import load_file, save_file
from several import Pods, assert_same_training, losses, set_aside
from transformers import LlamaForCausalLM
from tuneloop_core.api.finetunejob import Method, Training
from tuneloop_core.stages import Stage

from tuneloop_trainer import train
from tuneloop_trainer.batches import Schedule
from tuneloop_trainer.learning import Side
from tuneloop_trainer.peers import Peers
from tuneloop_trainer.sharding import Root
from tuneloop_trainer.whole import write_model, write_split_model

TWO = {"nodes": 1, "accelerators": 2, "simulatedAccelerators": True, "shard": True, "packTokens": 128}
EVERY_STEP = {"interval": "1ms", "keep": 2}


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "PACK_TOKENS", {"cpu": 128})


@pytest.fixture
def started() -> Iterator[list[Pods]]:
    """What a test starts, so that nothing outlives it."""
    found: list[Pods] = []
    yield found
    for each in found:
        each.kill()


def test_a_step_is_that_of_one_piece_and_each_process_holds_its_share(tiny: Path, tmp_path: Path) -> None:
    for rank, found in enumerate(split_pair.both(tiny, tmp_path, free_port())):
        for name, case in found.items():
            assert case["norms"][1] == pytest.approx(case["norms"][0], rel=1e-4), name
            assert case["difference"] < 1e-4, "weights and moments, gathered on the leader"
            assert case["losses"][1] == pytest.approx(case["losses"][0], rel=1e-4), name
            assert case["counts"][0] == case["counts"][1], "of the whole model"
        held, every = found["all weights in bfloat16"]["bytes"]
        assert held == every / 2, f"rank {rank}: float32, and nothing beside it"
        held, every = found["LoRA, recomputed"]["bytes"]
        adapter = 4 * found["LoRA, recomputed"]["counts"][0][0]
        assert held - adapter == (every - adapter) / 2, f"rank {rank}: the base alone is split"
    assert_same_tensors(tmp_path / "split", tmp_path / "whole", "model.safetensors")
    written, expected = ((tmp_path / kind / "config.json").read_text() for kind in ("split", "whole"))
    assert written == expected


def test_a_head_of_its_own_where_the_configuration_ties_it(tiny: Path, tmp_path: Path) -> None:
    """Only the leader reads the files, where the two differ."""
    folder = shutil.copytree(tiny, tmp_path / "untied")
    tensors = load_file(folder / "model.safetensors")
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"] * 1.1}
    save_file(tensors | head, folder / "model.safetensors", metadata={"format": "pt"})
    for found in split_pair.both(folder, tmp_path, free_port(), "all weights, written"):
        case = found["all weights, written"]
        assert case["losses"][1] == pytest.approx(case["losses"][0], rel=1e-4)
        assert case["counts"][0] == case["counts"][1]
    assert "lm_head.weight" in load_file(tmp_path / "split/model.safetensors")
    assert_same_tensors(tmp_path / "split", tmp_path / "whole", "model.safetensors")


@pytest.mark.parametrize("masters", [True, False], ids=["all weights", "an adapter merged"])
def test_what_is_published_is_what_is_computed_with_in_the_formats_of_one_piece(
    tiny: Path, tmp_path: Path, masters: bool
) -> None:
    """The machine computes in bfloat16, the base is float16; of all weights float32 is what is kept besides."""
    folder = shutil.copytree(tiny, tmp_path / "half")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": "float16"}))
    whole, split = (LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
    whole.bfloat16()
    if not masters:
        split.bfloat16()
        for model in (whole, split):
            model.model.norm.float()  # as transformers keeps some layers
    write_model(whole, folder, tmp_path / "whole", {})
    root = Root(split, Peers(), torch.float32 if masters else None)
    write_split_model(root, torch.bfloat16, folder, tmp_path / "split", {})
    found, expected = (load_file(tmp_path / kind / "model.safetensors") for kind in ("split", "whole"))
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        assert tensor.dtype == expected[key].dtype, key
        assert torch.equal(tensor, expected[key]), key
    assert found["model.norm.weight"].dtype == (torch.float16 if masters else torch.float32)
    computed, published = split.model.embed_tokens.weight, found["model.embed_tokens.weight"]
    assert torch.equal(computed.bfloat16().half(), published), "what is scored is what is published"


def test_lora_over_two_pods_of_which_one_is_killed(pod: pods.Pod, started: list[Pods]) -> None:
    pod.check()
    alone = pod.succeed(Stage.TRAIN, pod.train_input())
    before = set_aside(pod, "alone")
    two = Pods(pod, pod.train_input() | {"nodes": 2, "shard": True, "packTokens": 128, "checkpoint": EVERY_STEP})
    started.append(two)
    two.start(driven={1: ("kill", 14)})
    assert two.codes() == [77, 137], two.log(0)[-2000:]
    assert 0 < losses(pod)[-1][0] < alone["steps"]
    folder = pod.paths.work / "train"
    (folder / "pack-tokens").write_text("64")  # as the first try leaves it where it ran out of memory
    together = two.finish()
    assert together["resumes"] == 1
    assert_same_training(pod, alone, together, before)
    assert_same_tensors(folder, before, "adapter/adapter_model.safetensors")
    assert (folder / "samples.jsonl").read_text() == (before / "samples.jsonl").read_text()
    last = json.loads((folder / f"checkpoints/step-{together['steps']}/state.json").read_text())
    assert last["capacity"] == 64, "of the packs, also from a checkpoint of larger ones"


def test_all_weights_whose_checkpoint_goes_on_in_one_process(
    bare_pod: pods.Pod, tiny: Path, started: list[Pods]
) -> None:
    """KTO, whose divergence some processes measure without rows of their own; the best weights lie in parts."""
    settings = {"packing": False, "earlyStopping": {"interval": 2, "patience": 9}, "epochs": 1}
    method = {"objective": "KTO", "adapter": "None"}
    pod, stage_input = prepared(bare_pod, tiny, method, thumbs(), learningRate="3e-3", **settings)
    assert any(count % 2 for count in rows_of_steps(pod, stage_input)), "some process has no row of its own"
    alone = pod.succeed(Stage.TRAIN, stage_input)
    before = set_aside(pod, "alone")
    together = split(pod, stage_input | {"checkpoint": EVERY_STEP, "recompute": True}, started)
    assert_same_training(pod, alone, together, before)
    assert together["bestStep"] == alone["bestStep"]
    folder = pod.paths.work / "train"
    assert_same_tensors(folder, before, "model/model.safetensors")
    last = f"checkpoints/step-{alone['steps']}"
    assert_same_tensors(folder, before, f"{last}/state.safetensors")

    shutil.rmtree(folder / last)
    (folder / "result.json").unlink()
    resumed = pod.succeed(Stage.TRAIN, stage_input)
    assert resumed["resumes"] == 1
    assert_same_training(pod, alone, resumed, before)
    assert_same_tensors(folder, before, "model/model.safetensors")


def free_port() -> int:
    return int(stores.free_address().rpartition(":")[2])


def prepared(
    pod: pods.Pod, tiny: Path, method: dict[str, Any], rows: list[dict[str, Any]], **training: Any
) -> tuple[pods.Pod, dict[str, Any]]:
    """A pod with these rows checked, and the input of its train stage."""
    shutil.copytree(tiny, pod.paths.model, dirs_exist_ok=True)
    pod.write_dataset(*rows)
    stage_input = {**pod.train_input(tokensPerStep=256, **training), "method": method}
    pod.succeed(Stage.CHECK, {**pod.check_input(stage_input["training"]), "method": method})
    return pod, stage_input


def rows_of_steps(pod: pods.Pod, stage_input: dict[str, Any]) -> list[int]:
    method = Method.model_validate(stage_input["method"])
    training = Training.model_validate(stage_input["training"])
    lengths = Side.read(pod.paths.data, "train", method).examples.lengths
    schedule = Schedule(lengths, training.tokens_per_step, training.epochs, training.max_steps, training.seed)
    return [len(schedule.documents(step)) for step in range(schedule.total_steps)]


def split(pod: pods.Pod, stage_input: dict[str, Any], started: list[Pods]) -> dict[str, Any]:
    """The result of two processes of one pod."""
    both = Pods(pod, stage_input | TWO)
    started.append(both)
    both.start()
    assert both.codes() == [0], both.log(0)[-6000:]
    result = both.said(0).result
    assert result is not None
    return result


def assert_same_tensors(found: Path, expected: Path, name: str) -> None:
    ours, theirs = load_file(found / name), load_file(expected / name)
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert torch.allclose(tensor, theirs[key], atol=1e-3), key
