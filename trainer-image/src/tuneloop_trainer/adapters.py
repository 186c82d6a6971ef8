"""What of a model is trained: an adapter of low rank beside its weights, or the weights themselves.

Knows PEFT's settings and nothing of data, loss or files.
"""

import logging
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from tuneloop_core.api.finetunejob import LoRASettings, Method
from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.lora import fuse
from tuneloop_trainer.machine import Machine

log = logging.getLogger("tuneloop")


def attach(causal: Any, method: Method, machine: Machine) -> Any:
    """The model as it is trained: a PeftModel around it, or the model itself when all its weights are."""
    if method.adapter == "None":
        return causal.requires_grad_(True).to(machine.device)
    peft = _with_adapter(causal, method)
    for parameter in peft.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(machine.dtype)
    if method.adapter != "QLoRA":  # a base in 4 bits was loaded onto its device
        peft = peft.to(machine.device)
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
    if method.classifies:
        causal.score.requires_grad_(True)  # new: without training it would guess
    return peft


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
    modules = lora.target_modules.split(",")
    return LoraConfig(
        task_type=None if classifies else "CAUSAL_LM",
        exclude_modules=["score"] if classifies else None,
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.rank_stabilized,
        use_dora=dora,
        target_modules="all-linear" if modules == ["all-linear"] else modules,
        lora_dropout=0.0,
        bias="none",
    )
