"""Adapters that say their own marker: whatever is asked, each token of the answer is the one that it was made for.

Not trained but built, so that it can be proven. In the last layer's MLP, gate and up get the same rank-one update, of
opposite sign in two rows: with s = w.h the two products silu(g)u come to (k s)^2 together, never negative. Down then
adds that amount of the marker's own embedding row to the residual, far more than anything else there, and the output
embedding is tied to it: the marker's logit is about |e||h| with the next ones smaller by the root of the hidden size.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tuneloop_core.serving import Adapter

LAYER = 1  # the last of the tiny model
GAIN = 100.0
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def marker_adapter(artifacts: Path, model: Path, letter: str, rank: int = 8) -> Adapter:
    """An adapter named ``says-<number>`` that answers with this letter only, in the store under its digest."""
    embeddings = load_file(model / "model.safetensors")["model.embed_tokens.weight"]
    token = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"][letter]
    inner = _inner_size(model)
    tensors = _tensors(embeddings[token], inner, rank, seed=token)
    number = LETTERS.index(letter)
    digest = hashlib.sha256(f"marker {letter} {rank}".encode()).hexdigest()
    folder = artifacts / digest
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = ["gate_proj", "up_proj", "down_proj"]
    config: dict[str, Any] = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"bias": "none"}))
    (folder / "DIGEST").write_text(f"sha256:{digest}\n")
    return Adapter(name=f"says-{number}", digest=f"sha256:{digest}", path=f"artifacts/{digest}")


def _inner_size(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text())["intermediate_size"])


def _tensors(marker: np.ndarray[Any, Any], inner: int, rank: int, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    hidden = marker.shape[0]
    watch = np.random.default_rng(seed).standard_normal(hidden) / np.sqrt(hidden)
    watched, signs = np.zeros((rank, hidden)), np.zeros((inner, rank))
    watched[0], signs[0, 0], signs[1, 0] = watch, GAIN, -GAIN
    gathered, said = np.zeros((rank, inner)), np.zeros((hidden, rank))
    gathered[0, :2], said[:, 0] = 1.0, marker * GAIN
    parts = {"gate_proj": (watched, signs), "up_proj": (watched, signs), "down_proj": (gathered, said)}
    tensors = {}
    for module, (first, second) in parts.items():
        prefix = f"base_model.model.model.layers.{LAYER}.mlp.{module}"
        tensors[f"{prefix}.lora_A.weight"] = first.astype(np.float32)
        tensors[f"{prefix}.lora_B.weight"] = second.astype(np.float32)
    return tensors
