"""What config.json does not say and the architecture implies: names of the matrices, norms, defaults of left-out keys.

Read off the models of transformers 5.23 (``transformers/models/<model_type>/modeling_*.py`` and
``configuration_*.py``). Never holds the numbers of one model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

Defaults = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """One architecture; ``norms`` counts vectors of the hidden size in a layer."""

    norms: int = 2
    norm_bias: bool = False
    query_key_norm: bool = False
    gated: bool = True
    tied: bool = False  # where config.json does not say
    query_key_value_bias: bool = False  # where config.json does not say
    shared_expert_gate: bool = False
    experts_adapted: bool = False  # PEFT's all-linear adapts routed experts and router, and no dense MLP
    names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    defaults: Defaults = field(default_factory=dict)


_PHI3 = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
_NEOX = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
_GEMMA = MappingProxyType({"head_dim": 256})
_GEMMA3 = MappingProxyType(
    {"head_dim": 256, "vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4}
    | {"max_position_embeddings": 131072}
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family(),
        "mistral": Family(defaults=MappingProxyType({"num_key_value_heads": 8})),
        "qwen2": Family(query_key_value_bias=True),
        "qwen3": Family(query_key_norm=True, defaults=MappingProxyType({"head_dim": 128})),
        "smollm3": Family(tied=True),
        "gemma": Family(tied=True, defaults=_GEMMA),
        "gemma2": Family(norms=4, tied=True, defaults=_GEMMA),
        "gemma3_text": Family(norms=4, query_key_norm=True, tied=True, defaults=_GEMMA3),
        "phi3": Family(names=_PHI3),
        "gpt_neox": Family(norm_bias=True, gated=False, query_key_value_bias=True, names=_NEOX),
        "mixtral": Family(experts_adapted=True, defaults=MappingProxyType({"num_key_value_heads": 8})),
        "qwen2_moe": Family(query_key_value_bias=True, shared_expert_gate=True),
        "qwen3_moe": Family(query_key_norm=True, experts_adapted=True),
    }
)
UNKNOWN = Family()


def family(architecture: str) -> Family:
    """The family of a model_type; one that is not known is taken for a Llama."""
    return FAMILIES.get(architecture, UNKNOWN)
