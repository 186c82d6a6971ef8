"""A tiny random model with everything a real one has: a Llama of 0.3 M parameters that loads in transformers and vLLM.

For tests that walk the whole path and must not wait: weights by numpy, a real byte-level BPE tokenizer trained on the
spot, a chat template with or without ``{% generation %}`` markers. Deterministic: one seed, one digest. Needs no
torch; never used to show quality.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 512
HIDDEN = 128
LAYERS = 2
HEADS = 2
KV_HEADS = 1
HEAD_SIZE = 64
INTERMEDIATE = 256

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a tiny helpful model.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML as SmolLM2 has it: a default system prompt, no markers."""

CHATML_MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML with the markers that name the trained part."""

_CORPUS = (
    "What does the field spec do? It describes the desired state of the object.",
    "You are a tiny helpful model. system user assistant",
    "The capital of France is Paris. The colour of the sky is blue. One and one is two.",
    "Question and answer, instruction and response, prompt and completion.",
)


def write_tiny_model(folder: Path, chat_template: str | None = CHATML, seed: int = 0) -> Path:
    """Write config, tokenizer and safetensors weights into ``folder`` (made if needed); returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(folder, chat_template)
    _write_json(folder / "config.json", _config())
    _write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0})
    save_file(_weights(seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_tiny_dataset(folder: Path, rows: int = 64) -> Path:
    """Write ``train.jsonl``: chat rows with a pattern that even this model can learn; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    colours = ("red", "blue", "green", "white")
    lines = []
    for number in range(rows):
        answer = f"The colour of thing {number} is {colours[number % len(colours)]}."
        messages = [
            {"role": "user", "content": f"What is the colour of thing {number}?"},
            {"role": "assistant", "content": answer},
        ]
        lines.append(json.dumps({"messages": messages}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _write_tokenizer(folder: Path, chat_template: str | None) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(chat_template))


def _tokenizer_config(chat_template: str | None) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[0],
        "eos_token": SPECIAL_TOKENS[2],
        "pad_token": SPECIAL_TOKENS[0],
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
    }
    return config if chat_template is None else {**config, "chat_template": chat_template}


def _config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_SIZE,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "float32",
    }


def _weights(seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Weights with the scale of a trained model, so that logits differ and an adapter has something to bend."""
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray[Any, Any]:
        drawn: np.ndarray[Any, Any] = random.standard_normal((rows, columns)) / np.sqrt(columns)
        return drawn.astype(np.float32)

    ones = np.ones(HIDDEN, dtype=np.float32)
    weights = {"model.embed_tokens.weight": matrix(VOCABULARY, HIDDEN), "model.norm.weight": ones.copy()}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        weights |= {
            f"{prefix}self_attn.q_proj.weight": matrix(HEADS * HEAD_SIZE, HIDDEN),
            f"{prefix}self_attn.k_proj.weight": matrix(KV_HEADS * HEAD_SIZE, HIDDEN),
            f"{prefix}self_attn.v_proj.weight": matrix(KV_HEADS * HEAD_SIZE, HIDDEN),
            f"{prefix}self_attn.o_proj.weight": matrix(HIDDEN, HEADS * HEAD_SIZE),
            f"{prefix}mlp.gate_proj.weight": matrix(INTERMEDIATE, HIDDEN),
            f"{prefix}mlp.up_proj.weight": matrix(INTERMEDIATE, HIDDEN),
            f"{prefix}mlp.down_proj.weight": matrix(HIDDEN, INTERMEDIATE),
            f"{prefix}input_layernorm.weight": ones.copy(),
            f"{prefix}post_attention_layernorm.weight": ones.copy(),
        }
    return weights


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")
