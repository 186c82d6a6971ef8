"""Sequence classification through the stages as pods run them, and what of it loads in plain transformers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pods
import pytest
import torch
from rows import CLASSES, TEXTS, classes
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification
from tuneloop_core.api.finetunejob import Method
from tuneloop_core.stages import Stage

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.machine import Machine
from tuneloop_trainer.model import TunedModel, load_model, verify
from tuneloop_trainer.objectives import macro_f1
from tuneloop_trainer.tokens import Document

CPU = Machine(torch.device("cpu"), torch.float32, 1)
TRAINING = {"epochs": 4, "tokensPerStep": 256, "learningRate": "1e-2"}


@pytest.mark.parametrize("adapter", ["LoRA", "DoRA", "None"])
def test_texts_are_told_apart_and_the_model_loads_anywhere(bare_pod: pods.Pod, tiny: Path, adapter: str) -> None:
    pod = bare_pod
    shutil.copytree(tiny, pod.paths.model, dirs_exist_ok=True)
    pod.write_dataset(*classes())
    method = {"task": "SequenceClassification", "adapter": adapter}
    training = {**TRAINING, "learningRate": "3e-3"} if adapter == "None" else TRAINING
    checked = pod.succeed(Stage.CHECK, {"dataset": {"uri": "pvc://c/d"}, "method": method, "training": training})
    assert (checked["format"], checked["classes"]) == ("Classification", 3)
    evaluation = {**pods.EVALUATION, "gates": [{"metric": "accuracy", "min": "0.9"}, {"metric": "f1", "min": "0.9"}]}
    stage_input = {"method": method, "training": training, "checkpoint": {}, "evaluation": evaluation}
    trained = pod.succeed(Stage.TRAIN, stage_input)
    assert trained["tuned"]["accuracy"] >= 0.9
    assert trained["tuned"]["evalLoss"] < trained["base"]["evalLoss"]
    assert trained["tuned"]["generations"] == 0

    spec = {"model": {"uri": "pvc://m/tiny"}, "dataset": {"uri": "pvc://c/d"}}
    spec |= {key: stage_input[key] for key in ("method", "training", "evaluation")}
    fetch = {"modelUri": "pvc://m@sha256:0", "modelPath": "models/m", "modelCommit": "sha256:0", "modelBytes": 1}
    published = pod.succeed(Stage.PUBLISH, {"name": "j", "namespace": "t", "spec": spec, "fetch": fetch})
    assert published["kind"] == "Model"
    assert [gate["passed"] for gate in published["gates"]] == [True, True]
    check_artifact(pod.root / "store" / published["path"])


def check_artifact(artifact: Path) -> None:
    config = json.loads((artifact / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert sorted(config["label2id"]) == sorted(CLASSES)
    assert "pipeline_tag: text-classification" in (artifact / "README.md").read_text()
    plain = AutoModelForSequenceClassification.from_pretrained(artifact)
    tokenizer = AutoTokenizer.from_pretrained(artifact)
    for name, text in TEXTS.items():
        with torch.no_grad():
            logits = plain(**tokenizer(text.format(1000), return_tensors="pt", return_token_type_ids=False)).logits
        assert plain.config.id2label[int(logits.argmax())] == name


@pytest.fixture
def model(tiny: Path) -> TunedModel:
    return load_model(tiny, CPU, Method(task="SequenceClassification"), seed=1, labels=CLASSES)


def document(*ids: int) -> Document:
    return Document(np.array(ids, dtype=np.int32), np.zeros(len(ids), dtype=np.uint8))


def test_packed_texts_have_the_logits_of_single_ones(model: TunedModel) -> None:
    packs = [document(5, 6, 7), document(5, 6, 7), document(5, 6), document(9), document(5, 6, 7, 8, 9)]
    verify(model, packs[:2])
    assert model.isolates
    with torch.no_grad(), model.generating():
        single = [model.causal(torch.from_numpy(each.ids.astype("int64"))[None]).logits for each in packs]
    with torch.no_grad():
        for chosen in (slice(None), slice(3), slice(4, None)):
            ours = model.head.logits(model.last(packs[chosen]))
            assert torch.allclose(ours, torch.cat(single[chosen]), atol=1e-4)


def test_the_head_is_trained_beside_the_adapter(model: TunedModel) -> None:
    names = {name.rpartition("base_model.model.")[2] for name in model.parameters}
    assert "score.weight" in names
    assert not {name for name in names if name.startswith("score.lora")}


def test_an_encoder_is_refused_in_words(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(StageError, match="takes decoder models"):
        load_model(tmp_path, CPU, Method(task="SequenceClassification"), seed=1, labels=CLASSES)


def test_f1_is_averaged_over_classes() -> None:
    assert macro_f1([0, 1, 2], [0, 1, 2]) == 1.0
    assert macro_f1([0, 0, 0, 0], [0, 0, 1, 1]) == pytest.approx((2 / 3 + 0) / 2)
    assert macro_f1([0, 1], [1, 0]) == 0.0
