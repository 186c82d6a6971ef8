"""Shapes and parameter counts of well-known models, from the keys of their config.json."""

from typing import Any

import pytest

from tuneloop_core.plan.config import read_shape
from tuneloop_core.plan.parameters import active_weights, targeted, total_parameters, trainable_parameters

Config = dict[str, Any]


def config(model_type: str, hidden: int, wide: int, layers: int, heads: int, vocabulary: int, **more: Any) -> Config:
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
    } | more


SMOLLM2 = config("llama", 576, 1536, 30, 9, 49152, num_key_value_heads=3, tie_word_embeddings=True)
LLAMA_8B = config("llama", 4096, 14336, 32, 32, 128256, num_key_value_heads=8, max_position_embeddings=131072)
MIXTRAL = config("mixtral", 4096, 14336, 32, 32, 32000, num_key_value_heads=8, num_local_experts=8)
QWEN3_MOE = config(
    "qwen3_moe", 2048, 6144, 48, 32, 151936, num_key_value_heads=4, head_dim=128, num_experts=128,
    num_experts_per_tok=8, moe_intermediate_size=768, decoder_sparse_step=1, mlp_only_layers=[],
)  # fmt: skip
GEMMA3_1B = config("gemma3_text", 1152, 6912, 26, 4, 262144, num_key_value_heads=1, head_dim=256)

COUNTS = [
    ("SmolLM2-135M", SMOLLM2, 134_515_008),
    ("Llama-3.1-8B", LLAMA_8B, 8_030_261_248),
    ("Mistral-7B", config("mistral", 4096, 14336, 32, 32, 32000, num_key_value_heads=8), 7_241_732_096),
    ("Qwen2.5-7B", config("qwen2", 3584, 18944, 28, 28, 152064, num_key_value_heads=4), 7_615_616_512),
    ("Qwen3-8B", config("qwen3", 4096, 12288, 36, 32, 151936, num_key_value_heads=8, head_dim=128), 8_190_735_360),
    ("gemma-2-2b", config("gemma2", 2304, 9216, 26, 8, 256000, num_key_value_heads=4, head_dim=256), 2_614_341_888),
    ("gemma-3-1b", GEMMA3_1B, 999_885_952),
    ("Phi-3-mini", config("phi3", 3072, 8192, 32, 32, 32064, num_key_value_heads=32), 3_821_079_552),
    ("pythia-160m", config("gpt_neox", 768, 3072, 12, 12, 50304, tie_word_embeddings=False), 162_322_944),
    ("Mixtral-8x7B", MIXTRAL, 46_702_792_704),
    ("Qwen3-30B-A3B", QWEN3_MOE, 30_532_122_624),
]


@pytest.mark.parametrize(("name", "found", "parameters"), COUNTS, ids=[name for name, _, _ in COUNTS])
def test_parameters_are_those_of_the_model_card(name: str, found: Config, parameters: int) -> None:
    shape = read_shape(found)
    assert shape is not None
    assert shape.known
    assert total_parameters(shape) == parameters, name


@pytest.mark.parametrize(
    ("adapter", "targets", "parameters"),
    [
        ("LoRA", "all-linear", 4_884_480),
        ("LoRA", "q_proj,v_proj", 30 * 16 * ((576 + 576) + (576 + 192))),
        ("LoRA", "no_such_proj", 0),
        ("DoRA", "all-linear", 4_884_480 + 30 * (576 + 192 + 192 + 576 + 1536 + 1536 + 576)),
        ("Full", "all-linear", 134_515_008),
    ],
)
def test_trainable_parameters(adapter: Any, targets: str, parameters: int) -> None:
    shape = read_shape(SMOLLM2)
    assert shape is not None
    assert trainable_parameters(shape, adapter, 16, targets) == parameters


def test_a_token_passes_few_experts() -> None:
    shape = read_shape(QWEN3_MOE)
    assert shape is not None
    assert active_weights(shape) < total_parameters(shape) / 10
    assert not [matrix for matrix in targeted(shape, "all-linear") if matrix.mlp]


def test_the_text_part_of_a_model_of_several_parts() -> None:
    shape = read_shape({"model_type": "gemma3", "vision_config": {}, "text_config": GEMMA3_1B})
    assert shape is not None
    assert (shape.architecture, shape.tied, shape.head_size) == ("gemma3_text", True, 256)


def test_an_unknown_architecture_is_taken_for_a_llama_and_said_to_be_a_guess() -> None:
    shape = read_shape(SMOLLM2 | {"model_type": "brand_new"})
    assert shape is not None
    assert not shape.known
    assert total_parameters(shape) == 134_515_008


@pytest.mark.parametrize(
    "broken",
    [{}, {"model_type": "llama"}, SMOLLM2 | {"hidden_size": "wide"}, SMOLLM2 | {"hidden_size": 0}, {"text_config": 3}],
)
def test_a_config_without_sizes_gives_no_shape(broken: Config) -> None:
    assert read_shape(broken) is None
