"""A tuned model as a folder of its own: adapters merged, weights rounded to how the base was stored, safetensors.

The weights are rounded in the model itself, so that what is evaluated afterwards is what is published. Configuration
is the base's, word for word but for the number format: servers with another transformers must read it as they read
the base's. Never writes a tokenizer: publish takes the base's.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from tuneloop_trainer.sharding import Root, local, whole_state

log = logging.getLogger("tuneloop")

SHARD_SIZE = "4GB"
CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"


def merged(module: Any) -> Any:
    """The transformers model with what was trained in its own weights; a merged PeftModel must not be used again."""
    return module.merge_and_unload() if isinstance(module, PeftModel) else module


@torch.no_grad()
def write_model(model: Any, base: Path, folder: Path, changes: Mapping[str, Any]) -> None:
    """Write weights and configuration; the model goes on in its own format, with the rounded values.

    ``changes`` are keys of the configuration in which the model differs from its base.
    """
    computed = model.dtype
    published = published_dtype(base, computed)
    _convert(model, computed, published)
    try:
        model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    finally:
        _convert(model, published, computed)
    _write_configuration(base, folder, published, changes)


@torch.no_grad()
def write_split_model(
    root: Root, computed: torch.dtype, base: Path, folder: Path | None, changes: Mapping[str, Any]
) -> None:
    """The same of a model that is split; every process calls it, the leader with a folder."""
    published = published_dtype(base, computed)

    def written(parameter: torch.Tensor) -> torch.dtype:
        return published if parameter.dtype == root.held_dtype(computed) else parameter.dtype

    for parameter in root.causal.parameters():
        if written(parameter) == published:  # what is computed with is the rounding of masters
            local(parameter).copy_(local(parameter).to(computed).to(published))
    state = whole_state(root, written)
    if folder is None:
        return
    root.causal.save_pretrained(folder, state_dict=state, max_shard_size=SHARD_SIZE)
    _write_configuration(base, folder, published, changes)


def _write_configuration(base: Path, folder: Path, published: torch.dtype, changes: Mapping[str, Any]) -> None:
    config = json.loads((base / CONFIG).read_text(encoding="utf-8"))
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    _write(folder / CONFIG, {**config, key: str(published).removeprefix("torch."), **changes})
    (folder / GENERATION_CONFIG).unlink(missing_ok=True)
    if (base / GENERATION_CONFIG).is_file():
        (folder / GENERATION_CONFIG).write_bytes((base / GENERATION_CONFIG).read_bytes())
    log.info("the whole model is written in %s", published)


@torch.no_grad()
def round_as_published(model: Any, base: Path) -> None:
    """Give the model the rounded values that ``write_model`` leaves it with."""
    computed, published = model.dtype, published_dtype(base, model.dtype)
    _convert(model, computed, published)
    _convert(model, published, computed)


def published_dtype(base: Path, computed: torch.dtype) -> torch.dtype:
    """The base's number format, unless it is wider than what the model was trained in."""
    config = json.loads((base / CONFIG).read_text(encoding="utf-8"))
    stored = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or ""), None)
    if not isinstance(stored, torch.dtype) or not stored.is_floating_point:
        return computed
    return stored if stored.itemsize <= computed.itemsize else computed


def _convert(model: torch.nn.Module, before: torch.dtype, after: torch.dtype) -> None:
    """One parameter at a time, so that memory holds the model once. What the model keeps in another format stays."""
    for parameter in model.parameters():
        if parameter.dtype == before:
            parameter.data = parameter.data.to(after)


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
