"""Turns a GGUF model into a safetensors folder, as hubs hold models. Run in the trainer's environment plus ``gguf``.

Weights are dequantised to bfloat16. Written aside and renamed, so that a folder with the final name is whole. Never
downloads anything.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def convert(source: Path, output: Path) -> None:
    """Write model, tokenizer and chat template of ``source`` (a GGUF file) to the new folder ``output``."""
    aside = output.with_name(f".{output.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    # Without dequantize the model stays in GGUF's types and cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(aside)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.model_max_length = model.config.max_position_embeddings  # GGUF does not carry it
    tokenizer.save_pretrained(aside)
    forget_this_machine(aside / "tokenizer_config.json")
    for path in aside.iterdir():
        path.chmod(0o644)
    aside.rename(output)


def forget_this_machine(config: Path) -> None:
    """Drop what only says how the tokenizer was loaded here."""
    facts = json.loads(config.read_text())
    kept = {key: value for key, value in facts.items() if key not in ("is_local", "local_files_only")}
    config.write_text(json.dumps(kept, indent=2) + "\n")


def main() -> None:
    """Convert one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    convert(arguments.gguf, arguments.output)


if __name__ == "__main__":
    main()
