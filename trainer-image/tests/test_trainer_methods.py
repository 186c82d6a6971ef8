"""Every way to tune, through the stages as pods run them: what is published, and that it is what was measured."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pods
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from tuneloop_core.api.finetunejob import LoRASettings, Method
from tuneloop_core.stages import Stage

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.loop import Loop
from tuneloop_trainer.loss import Head, summed_loss
from tuneloop_trainer.machine import Machine
from tuneloop_trainer.model import TunedModel, load_model, verify
from tuneloop_trainer.tokens import Document
from tuneloop_trainer.whole import published_dtype

CPU = Machine(torch.device("cpu"), torch.float32, 1)
METHODS: dict[str, dict[str, Any]] = {
    "rsLoRA": {"adapter": "LoRA", "lora": {"rank": 8, "alpha": 16, "rankStabilized": True}},
    "DoRA": {"adapter": "DoRA", "lora": {"rank": 8, "alpha": 16}},
    "full": {"adapter": "None"},
    "QLoRA": {"adapter": "QLoRA", "lora": {"rank": 8, "alpha": 16}},
}
METHODS["merged rsLoRA"] = {**METHODS["rsLoRA"], "merge": True}
METHODS["merged QLoRA"] = {**METHODS["QLoRA"], "merge": True}
RATES = {name: "3e-3" if name == "full" else "1e-2" for name in METHODS}


def tune(pod: pods.Pod, name: str, **training: Any) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Check, train, publish: both results and the artifact's folder."""
    method = METHODS[name]
    stage_input = {**pod.train_input(learningRate=RATES[name], **training), "method": method}
    pod.succeed(Stage.CHECK, {**pod.check_input(), "method": method})
    trained = pod.succeed(Stage.TRAIN, stage_input)
    spec = {
        "model": {"uri": "pvc://models/tiny"},
        "dataset": {"uri": "pvc://data/colours"},
        "method": method,
        "training": stage_input["training"],
        "evaluation": stage_input["evaluation"],
    }
    fetch = {"modelUri": "pvc://models/tiny@sha256:0", "modelPath": "models/tiny", "modelCommit": "sha256:0"}
    published = pod.succeed(
        Stage.PUBLISH, {"name": "job", "namespace": "test", "spec": spec, "fetch": {**fetch, "modelBytes": 1}}
    )
    return trained, published, pod.root / "store" / published["path"]


def plain_loss(model: Any, pod: pods.Pod) -> float:
    """The held-out loss by transformers alone, one row at a time."""
    from tuneloop_trainer.tokens import TokenStore  # noqa: PLC0415

    store, total, count = TokenStore(pod.paths.data / "validation"), 0.0, 0
    for number in range(len(store)):
        document = store.document(number)
        ids = torch.from_numpy(document.ids.astype("int64"))
        marked = torch.from_numpy(document.trained[1:].astype("bool"))
        with torch.no_grad():
            logits = model(ids.unsqueeze(0)).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits[marked], ids[1:][marked], reduction="sum").item()
        count += int(marked.sum())
    return total / count


@pytest.mark.parametrize("name", ["DoRA", "full", "merged rsLoRA", "merged QLoRA"])
def test_a_whole_model_loads_anywhere_and_scores_as_measured(pod: pods.Pod, name: str) -> None:
    trained, published, artifact = tune(pod, name)
    assert published["kind"] == "Model"
    assert trained["tuned"]["evalLoss"] < 0.8 * trained["base"]["evalLoss"]
    names = {path.name for path in artifact.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "manifest.json"} <= names
    assert not {each for each in names if each.startswith("adapter_")}
    assert json.loads((artifact / "config.json").read_text())["rope_theta"] == 10000.0  # the base's words
    plain = AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32)
    assert plain_loss(plain, pod) == pytest.approx(trained["tuned"]["evalLoss"], rel=1e-4)
    everything = sum(parameter.numel() for parameter in plain.parameters())
    assert trained["totalParameters"] == everything
    assert (trained["trainableParameters"] == everything) is (name == "full")
    assert set(load_file(artifact / "model.safetensors")) == set(load_file(pod.paths.model / "model.safetensors"))


def test_a_rank_stabilized_adapter_loads_in_peft_and_scores_as_measured(pod: pods.Pod) -> None:
    trained, published, artifact = tune(pod, "rsLoRA")
    assert published["kind"] == "Adapter"
    assert json.loads((artifact / "adapter_config.json").read_text())["use_rslora"] is True
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(pod.paths.model), str(artifact))
    assert plain_loss(tuned, pod) == pytest.approx(trained["tuned"]["evalLoss"], rel=1e-4)


def test_qlora_trains_an_adapter_over_four_bits_for_the_base_as_it_was(pod: pods.Pod) -> None:
    trained, published, artifact = tune(pod, "QLoRA")
    assert published["kind"] == "Adapter"
    assert trained["tuned"]["evalLoss"] < 0.7 * trained["base"]["evalLoss"]
    plain = AutoModelForCausalLM.from_pretrained(pod.paths.model)
    assert trained["totalParameters"] == sum(parameter.numel() for parameter in plain.parameters())
    tuned = PeftModel.from_pretrained(plain, str(artifact))
    assert plain_loss(tuned, pod) == pytest.approx(trained["tuned"]["evalLoss"], rel=0.1)  # the rounding to 4 bits


def test_linear_layers_are_held_in_four_bits(tiny: Path) -> None:
    model = load_model(tiny, CPU, Method(adapter="QLoRA"), seed=1)
    layers = [module for module in model.module.modules() if type(module).__name__ == "Linear4bit"]
    held = [layer.weight for layer in layers if hasattr(layer, "weight") and layer.weight.dtype == torch.uint8]
    assert len(held) >= 14  # seven in each of the two layers
    assert {weight.quant_state.quant_type for weight in held} == {"nf4"}
    assert all(weight.numel() * 2 == weight.quant_state.shape.numel() for weight in held)
    assert model.head.weight.dtype == torch.float32


def test_every_layer_over_four_bits_gets_its_gradient(tiny: Path) -> None:
    """Also in bfloat16, and after a pass without gradient: bitsandbytes has CPU kernels without a backward."""
    bfloat16 = Machine(torch.device("cpu"), torch.bfloat16, 1)
    model = load_model(tiny, bfloat16, Method(adapter="QLoRA"), seed=1)
    documents = [Document(np.arange(9, dtype=np.int32), np.ones(9, dtype=np.uint8))]
    verify(model, documents)
    loss, _ = model.loss(documents)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in model.parameters.values())
    assert all(bool(p.grad.any()) for name, p in model.parameters.items() if "lora_B" in name and p.grad is not None)


@pytest.mark.parametrize("name", ["DoRA", "full", "QLoRA"])
def test_a_stopped_run_goes_on_exactly(pod: pods.Pod, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("tuneloop_trainer.train.PACK_TOKENS", {"cpu": 128})
    whole, _, artifact = tune(pod, name)
    (pod.paths.work / "train").rename(pod.paths.work / "uninterrupted")
    original, seen = Loop._pack, iter(range(10**6))

    def counted(self: Loop, *args: Any) -> None:
        original(self, *args)
        if next(seen) == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_pack", counted)
        stage_input = {**pod.train_input(learningRate=RATES[name]), "method": METHODS[name]}
        assert pod.run(Stage.TRAIN, stage_input)[0] == 143
    resumed = pod.succeed(Stage.TRAIN, stage_input)
    assert resumed["resumes"] == 1
    assert (resumed["curve"], resumed["base"], resumed["tuned"]) == (whole["curve"], whole["base"], whole["tuned"])
    written = "adapter/adapter_model.safetensors" if name == "QLoRA" else "model/model.safetensors"
    assert (pod.paths.work / "train" / written).read_bytes() == (artifact / Path(written).name).read_bytes()


@pytest.mark.parametrize("method", [Method(adapter="DoRA"), Method(adapter="None")], ids=["DoRA", "full"])
def test_what_is_written_gives_the_logits_of_what_goes_on(tiny: Path, tmp_path: Path, method: Method) -> None:
    """Also where the base is stored in a narrower format than it is trained in: evaluation sees the rounded weights."""
    base = stored_in_bfloat16(tiny, tmp_path / "base")
    model = load_model(base, CPU, method, seed=1)
    disturb(model)
    ids = torch.arange(40).unsqueeze(0)
    with torch.no_grad():
        tuned = logits(model, ids)
        model.save_whole(base, tmp_path / "written")
        ours = logits(model, ids)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "written", dtype=torch.float32)(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert (tuned - theirs).norm() / tuned.norm() < 2e-2  # the rounding
    written = load_file(tmp_path / "written/model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "written/config.json").read_text())["torch_dtype"] == "bfloat16"
    assert model.causal.dtype == torch.float32


def test_a_merged_model_in_the_trained_format_keeps_its_logits(tiny: Path, tmp_path: Path) -> None:
    model = load_model(tiny, CPU, Method(adapter="DoRA", lora=LoRASettings(rank=4)), seed=1)
    disturb(model)
    ids = torch.arange(40).unsqueeze(0)
    with torch.no_grad():
        tuned = logits(model, ids)
        model.save_whole(tiny, tmp_path / "written")
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "written")(ids).logits
    assert torch.allclose(tuned, theirs, atol=1e-3)


def test_an_adapter_for_the_last_layer_is_refused_in_words(tiny: Path) -> None:
    with pytest.raises(StageError, match="names lm_head, the layer that writes words"):
        load_model(tiny, CPU, Method(lora=LoRASettings(target_modules="q_proj,lm_head")), seed=1)


def test_each_name_of_a_module_must_match(tiny: Path) -> None:
    """PEFT itself would train q_proj alone."""
    with pytest.raises(StageError, match=r"no layer of this model is named v_porj; it has .*v_proj"):
        load_model(tiny, CPU, Method(lora=LoRASettings(target_modules="q_proj,v_porj")), seed=1)
    model = load_model(tiny, CPU, Method(lora=LoRASettings(target_modules="self_attn.q_proj,v_proj")), seed=1)
    adapted = {name.partition(".lora_")[0].rpartition(".")[2] for name in model.parameters}
    assert adapted == {"q_proj", "v_proj"}


def test_the_published_format_is_the_narrower_one(tiny: Path, tmp_path: Path) -> None:
    assert published_dtype(tiny, torch.bfloat16) is torch.bfloat16
    assert published_dtype(stored_in_bfloat16(tiny, tmp_path / "base"), torch.float32) is torch.bfloat16


def stored_in_bfloat16(tiny: Path, folder: Path) -> Path:
    shutil.copytree(tiny, folder)
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(tiny / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tiny / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16"}))
    return folder


def logits(model: TunedModel, ids: torch.Tensor) -> torch.Tensor:
    with model.generating():
        found: torch.Tensor = model.causal(ids).logits
    return found


def disturb(model: TunedModel) -> None:
    """Training in one stroke: every trained weight moves."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters.values():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)


# ---- a head that is trained ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("softcap", [0.0, 4.0])
def test_gradients_of_a_trained_head_are_autograds(monkeypatch: pytest.MonkeyPatch, softcap: float) -> None:
    monkeypatch.setattr("tuneloop_trainer.loss.CHUNK_BYTES", {"cpu": 50 * 4 * 3})  # three tokens a chunk
    torch.manual_seed(0)
    hidden = torch.randn(8, 16, dtype=torch.float64).float().requires_grad_()
    weight = torch.nn.Parameter(torch.randn(50, 16))
    bias = torch.nn.Parameter(torch.randn(50))
    targets = torch.randint(0, 50, (8,))
    head = Head(weight, bias, scale=0.5, softcap=softcap)
    (3 * summed_loss(hidden, targets, head)).backward()
    ours = [tensor.grad.clone() for tensor in (hidden, weight, bias) if tensor.grad is not None]
    for tensor in (hidden, weight, bias):
        tensor.grad = None
    (3 * torch.nn.functional.cross_entropy(head.logits(hidden), targets, reduction="sum")).backward()
    theirs = [tensor.grad for tensor in (hidden, weight, bias) if tensor.grad is not None]
    assert len(ours) == len(theirs) == 3
    for left, right in zip(ours, theirs, strict=True):
        assert torch.allclose(left, right, rtol=1e-4, atol=1e-4)
