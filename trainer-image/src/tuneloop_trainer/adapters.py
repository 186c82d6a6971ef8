"""What of a model is trained: an adapter of low rank beside its weights, or the weights themselves.

Knows PEFT's settings and nothing of data, loss or files.
"""

import logging
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from tuneloop_core.api.finetunejob import LoRASettings, Method
from tuneloop_core.api.method import ALL_LINEAR
from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.lora import fuse
from tuneloop_trainer.machine import Machine

log = logging.getLogger("tuneloop")


def attach(causal: Any, method: Method, machine: Machine) -> Any:
    """The model as it is trained, where it is: a PeftModel around it, or itself when all its weights are trained."""
    if method.adapter == "None":
        return causal.requires_grad_(True)
    peft = _with_adapter(causal, method)
    for parameter in peft.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(machine.dtype)
    layers = sum("lora_A" in name for name, _ in peft.named_parameters())
    log.info("%d %s layers, %d of them fused", layers, method.adapter, fuse(peft))
    return peft


def _with_adapter(causal: Any, method: Method) -> PeftModel:
    _refuse_head(causal, method.lora.target_modules)
    try:
        peft = get_peft_model(
            causal, _settings(method.lora, dora=method.adapter == "DoRA", classifies=method.classifies)
        )
    except ValueError as error:
        message = f"method.lora.targetModules {method.lora.target_modules} does not fit this model: {error}"
        raise StageError(Reason.MODEL_UNSUPPORTED, message) from error
    _require_all_matched(peft, method.lora.target_modules)
    if method.classifies:
        causal.score.requires_grad_(True)  # new: without training it would guess
    return peft


def take_adapter(peft: PeftModel) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """An adapter's settings and weights, without the model that it is beside."""
    weights = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(peft).items()}
    return peft.peft_config[peft.active_adapter], weights


def with_weights(causal: Any, config: LoraConfig, weights: dict[str, torch.Tensor]) -> PeftModel:
    """A model with an adapter that was trained beside another copy of it; raises where a weight finds no place."""
    peft = get_peft_model(causal, config)
    for parameter in peft.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(causal.dtype)
    missed = set_peft_model_state_dict(peft, weights)
    if missed.unexpected_keys or any("lora_" in name for name in missed.missing_keys):
        raise ValueError(f"the adapter does not fit its own base: {missed.unexpected_keys[:3]}")
    return peft


def _require_all_matched(peft: PeftModel, target_modules: str) -> None:
    """PEFT is content where one name of several matches; a misspelled one would go untrained, and untold."""
    if target_modules == ALL_LINEAR:
        return
    found = peft.targeted_module_names
    missed = [n for n in target_modules.split(",") if not any(f".{each}".endswith(f".{n}") for each in found)]
    if missed:
        layers = [name for name, module in peft.named_modules() if isinstance(module, torch.nn.Linear)]
        there = {name.removesuffix(".base_layer").rpartition(".")[2] for name in layers if ".lora_" not in name}
        message = (
            f"method.lora.targetModules {target_modules}: no layer of this model is named {' or '.join(missed)}; it "
            f'has {", ".join(sorted(there))}. Name some of them, or "all-linear".'
        )
        raise StageError(Reason.MODEL_UNSUPPORTED, message)


def _refuse_head(causal: Any, target_modules: str) -> None:
    """The loss takes the last layer as it is: an adapter on it would get no gradient."""
    head = causal.get_output_embeddings()
    name = next((name for name, module in causal.named_modules() if module is head), "")
    if name and name.rpartition(".")[2] in target_modules.split(","):
        message = (
            f"method.lora.targetModules {target_modules} names {name}, the layer that writes words, for which no "
            "adapter is trained here: leave it out, or train all weights with method.adapter None."
        )
        raise StageError(Reason.MODEL_UNSUPPORTED, message)


def _settings(lora: LoRASettings, *, dora: bool, classifies: bool) -> LoraConfig:
    """As vLLM loads it: no bias, no whole modules. No dropout, so that packing changes nothing."""
    return LoraConfig(
        task_type=None if classifies else "CAUSAL_LM",
        exclude_modules=["score"] if classifies else None,
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.rank_stabilized,
        use_dora=dora,
        target_modules=ALL_LINEAR if lora.target_modules == ALL_LINEAR else lora.target_modules.split(","),
        lora_dropout=0.0,
        bias="none",
    )
