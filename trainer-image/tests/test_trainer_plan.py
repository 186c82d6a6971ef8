"""The plan's formulas against the real thing: counts of transformers and PEFT, tensors kept for backward, recompute."""

import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer
from tuneloop_core.api.finetunejob import Method
from tuneloop_core.plan.config import read_shape
from tuneloop_core.plan.memory import ALLOCATOR, Load, activation_bytes, estimate
from tuneloop_core.plan.parameters import expert_weights, total_parameters, trainable_parameters

from tuneloop_trainer import recompute
from tuneloop_trainer.fetch import model_shape
from tuneloop_trainer.machine import Machine
from tuneloop_trainer.model import TunedModel, load_model
from tuneloop_trainer.tokens import Document

CPU = Machine(torch.device("cpu"), torch.float32, 1)
TOKENS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
BASE = TOKENS | {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "vocab_size": 1000}
MOE = {"num_experts": 6, "moe_intermediate_size": 48}
FAMILIES: list[dict[str, Any]] = [
    {"model_type": "llama", "num_key_value_heads": 2},
    {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    {"model_type": "mistral", "num_key_value_heads": 2},
    {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True},
    {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 32},
    {"model_type": "smollm3", "num_key_value_heads": 2},
    {"model_type": "gemma", "num_key_value_heads": 1, "head_dim": 32},
    {"model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 32},
    {"model_type": "gemma3_text", "num_key_value_heads": 1, "head_dim": 32},
    {"model_type": "phi3", "num_key_value_heads": 2},
    {"model_type": "gpt_neox"},
    {"model_type": "gpt_neox", "attention_bias": False},
    {"model_type": "mixtral", "num_key_value_heads": 2, "num_local_experts": 4},
    {"model_type": "qwen2_moe", "num_key_value_heads": 2, "shared_expert_intermediate_size": 96, "mlp_only_layers": [0]}
    | MOE,
    {"model_type": "qwen3_moe", "num_key_value_heads": 2, "decoder_sparse_step": 2, "head_dim": 32} | MOE,
]


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")  # PEFT's own, of experts
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family["model_type"])
def test_counts_are_those_of_transformers_and_peft(family: dict[str, Any]) -> None:
    config = BASE | {"num_attention_heads": 4} | family
    shape = read_shape(config)
    assert shape is not None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        assert total_parameters(shape) == model.num_parameters()
        peft = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    added = sum(parameter.numel() for parameter in peft.parameters() if parameter.requires_grad)
    assert trainable_parameters(shape, "LoRA", 8, "all-linear") == added


def test_fetch_tells_the_shape(tiny: Path, tmp_path: Path) -> None:
    shape = model_shape(tiny)
    assert shape is not None
    assert shape.layers == json.loads((tiny / "config.json").read_text())["num_hidden_layers"]
    (tmp_path / "config.json").write_text("[]")
    assert model_shape(tmp_path) is None
    assert model_shape(tmp_path / "nowhere") is None


def test_what_a_pack_keeps_for_backward_is_what_the_plan_counts(tiny: Path) -> None:
    model = load_model(tiny, CPU, Method(), seed=1)
    documents = [document(64, seed) for seed in range(4)]
    shape = model_shape(tiny)
    assert shape is not None
    planned = activation_bytes(shape, Load("cpu", 4, 256, 128, target_modules="all-linear"))
    assert kept(model, documents) == pytest.approx(planned, rel=0.05)


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """A model of four sparse layers, whose experts are most of it."""
    experts = {"num_local_experts": 8, "hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 2}
    config = BASE | {"model_type": "mixtral", "num_attention_heads": 4, "vocab_size": 512} | experts
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
def test_adapted_experts_are_kept_in_copies(sparse: Path) -> None:
    model, shape = load_model(sparse, CPU, Method(), seed=1), model_shape(sparse)
    assert shape is not None
    planned = activation_bytes(shape, Load("cpu", 4, 64, 32, target_modules="all-linear"))
    assert kept(model, [document(32, seed) for seed in range(2)]) == pytest.approx(planned, rel=0.05)
    assert planned > 4 * expert_weights(shape, shape.experts)


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
@pytest.mark.parametrize("spares", [False, True])
def test_what_adapted_experts_take_at_the_peak(sparse: Path, spares: bool) -> None:
    """Beyond an adapter of attention alone; with recompute one layer's copies are there at a time."""
    shape, planned, measured = model_shape(sparse), [], []
    assert shape is not None
    for modules in ("q_proj,k_proj,v_proj,o_proj", "all-linear"):
        method = Method.model_validate({"lora": {"targetModules": modules}})
        model = load_model(sparse, CPU, method, seed=1)
        if spares:
            recompute.enable(model.causal)
        found = estimate(shape, Load("cpu", 4, 64, 32, target_modules=modules, recompute=spares))
        planned.append(found.gradients + found.activations / ALLOCATOR["cpu"])
        with Live() as live:
            gradients(model, [document(32, seed) for seed in range(2)])
        measured.append(live.peak)
    layer = 4 * expert_weights(shape, shape.experts) / 4
    more, found_more = planned[1] - planned[0], measured[1] - measured[0]
    assert more > (1 if spares else 4) * layer
    assert found_more == pytest.approx(more, rel=0.2)


def test_recompute_changes_no_gradient_and_keeps_far_less(tiny: Path) -> None:
    documents = [document(64, seed) for seed in range(4)]
    plain, spared = (load_model(tiny, CPU, Method(), seed=1) for _ in range(2))
    assert recompute.enable(spared.causal) > 0
    for left, right in zip(gradients(plain, documents), gradients(spared, documents), strict=True):
        assert torch.equal(left, right)
    assert kept(spared, documents) < 0.5 * kept(plain, documents)
    layers = [module for module in spared.causal.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert not any(layer.training for layer in layers)


class Live(TorchDispatchMode):
    """The most bytes at once of storages that torch makes while this is on."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


def document(length: int, seed: int) -> Document:
    trained = np.zeros(length, dtype=np.uint8)
    trained[length // 2 :] = 1
    return Document(np.random.default_rng(seed).integers(3, 500, length, dtype=np.int32), trained)


def gradients(model: TunedModel, documents: list[Document]) -> list[torch.Tensor]:
    loss, _ = model.loss(documents)
    loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters.values() if parameter.grad is not None]


def kept(model: TunedModel, documents: list[Document]) -> int:
    """Bytes of the storages that a forward pass keeps for backward, parameters left out."""
    known = {parameter.untyped_storage().data_ptr() for parameter in model.module.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.hidden(documents)
    return sum(storage.nbytes() for storage in found.values())
