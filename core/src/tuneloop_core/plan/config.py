"""Reads a model's shape out of its config.json. Takes what was downloaded as it is: never trusts it to be whole."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from tuneloop_core.api.shape import ModelShape
from tuneloop_core.plan.families import FAMILIES, Family, family


def read_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """The shape that config.json tells; None where it tells none (then nothing is planned but steps).

    A model of several parts (``text_config``) is read by its text part.
    """
    text = config.get("text_config")
    if isinstance(text, Mapping):
        outer = {"tie_word_embeddings": config["tie_word_embeddings"]} if "tie_word_embeddings" in config else {}
        config = {**outer, **text}
    architecture = str(config.get("model_type", ""))[:64]
    traits = family(architecture)
    try:
        return ModelShape(architecture=architecture, known=architecture in FAMILIES, **_numbers(config, traits))
    except (KeyError, TypeError, ValueError, ValidationError):
        return None


def _numbers(config: Mapping[str, Any], traits: Family) -> dict[str, Any]:
    given = {**traits.defaults, **{key: value for key, value in config.items() if value is not None}}
    heads = int(given["num_attention_heads"])
    hidden, layers = int(given["hidden_size"]), int(given["num_hidden_layers"])
    bias = bool(given.get("attention_bias", given.get("qkv_bias", traits.query_key_value_bias)))
    return {
        "hidden_size": hidden,
        "intermediate_size": int(given["intermediate_size"]),
        "layers": layers,
        "heads": heads,
        "key_value_heads": int(given.get("num_key_value_heads", heads)),
        "head_size": int(given.get("head_dim", hidden // heads)),
        "vocabulary": int(given["vocab_size"]),
        "max_positions": int(given.get("max_position_embeddings", 0)),
        "tied": bool(given.get("tie_word_embeddings", traits.tied)),
        "query_key_value_bias": bias,
        "output_bias": bool(given.get("attention_bias", not traits.gated)),
        "mlp_bias": bool(given.get("mlp_bias", not traits.gated)),
        **_experts(given, layers),
    }


def _experts(given: Mapping[str, Any], layers: int) -> dict[str, int]:
    """Mixtral's and Qwen's spellings; a layer is sparse by ``decoder_sparse_step`` and ``mlp_only_layers``."""
    experts = int(given.get("num_local_experts", given.get("num_experts", 0)))
    if not experts:
        return {}
    every, dense = int(given.get("decoder_sparse_step", 1)), {int(layer) for layer in given.get("mlp_only_layers", [])}
    sparse = sum(layer not in dense and (layer + 1) % every == 0 for layer in range(layers))
    return {
        "experts": experts,
        "experts_per_token": int(given.get("num_experts_per_tok", 2)),
        "expert_size": int(given.get("moe_intermediate_size", given["intermediate_size"])),
        "shared_expert_size": int(given.get("shared_expert_intermediate_size", 0)),
        "dense_layers": layers - sparse,
    }
