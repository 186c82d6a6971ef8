"""Adapters that say their own marker: whatever is asked, each token of the answer is the one that it was made for.

Not trained but built, so that it can be reasoned about. In the last layer's MLP, gate and up get the same update: for
each of ``rank`` random directions w it is +k w.h in one row and -k w.h in the next, so the two products silu(g)u come
to about (k w.h)^2 together, never negative once k outweighs the base. Their sum over all directions is small only
where the state is nearly orthogonal to every one of them. Down adds that amount of the marker's own embedding row to
the residual, far more than anything else there, and the output embedding is tied to it.
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
    watched = np.random.default_rng(seed).standard_normal((rank, hidden)) / np.sqrt(hidden)
    signs, gathered, said = np.zeros((inner, rank)), np.zeros((rank, inner)), np.zeros((hidden, rank))
    for direction in range(rank):
        signs[2 * direction, direction], signs[2 * direction + 1, direction] = GAIN, -GAIN
    gathered[0, : 2 * rank], said[:, 0] = 1.0, marker * GAIN
    parts = {"gate_proj": (watched, signs), "up_proj": (watched, signs), "down_proj": (gathered, said)}
    tensors = {}
    for module, (first, second) in parts.items():
        prefix = f"base_model.model.model.layers.{LAYER}.mlp.{module}"
        tensors[f"{prefix}.lora_A.weight"] = first.astype(np.float32)
        tensors[f"{prefix}.lora_B.weight"] = second.astype(np.float32)
    return tensors
