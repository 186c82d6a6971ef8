"""What the model folder says of itself: sizes from config.json and the weight files. Never loads a weight."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tuneloop_server.errors import StartError
from tuneloop_server.tasks import Task, task_of

SERVED_BYTES: Final = 2
"""vLLM's dtype auto serves float32 weights as bfloat16, too, so a number takes two bytes whatever the folder holds."""

# A model that takes pictures, sound or video has a config of its encoder in its own (or of its text side).
_MEDIA_CONFIGS: Final = ("vision_config", "audio_config", "text_config", "thinker_config", "perceiver_config")


@dataclass(frozen=True)
class ModelFacts:
    """Shape of the base model; zero where the config does not say (then nothing is concluded from it)."""

    architectures: tuple[str, ...]
    hidden_size: int
    layers: int
    kv_heads: int
    head_dim: int
    dtype_bytes: int
    weight_bytes: int
    task: Task = "generate"
    multimodal: bool = False
    files: tuple[str, ...] = ()  # of the weights

    def kv_bytes_per_token(self, dtype_bytes: int | None = None) -> int:
        """Key and value of all layers, bytes: 2 x layers x KV heads x head size x bytes a number."""
        return 2 * self.layers * self.kv_heads * self.head_dim * (dtype_bytes or self.dtype_bytes)


def read_model(path: Path) -> ModelFacts:
    """Facts of the folder. Raises StartError where it is no safetensors model folder."""
    config = _config(path)
    text: dict[str, Any] = config.get("text_config") or config
    files = _weight_files(path)
    heads = int(text.get("num_attention_heads") or 0)
    hidden = int(text.get("hidden_size") or 0)
    return ModelFacts(
        architectures=tuple(config.get("architectures") or ()),
        hidden_size=hidden,
        layers=int(text.get("num_hidden_layers") or 0),
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or (hidden // heads if heads else 0)),
        dtype_bytes=SERVED_BYTES,
        weight_bytes=sum(file.stat().st_size for file in files),
        task=task_of(config.get("architectures") or (), sentence_transformer=(path / "modules.json").exists()),
        multimodal=any(key in config for key in _MEDIA_CONFIGS),
        files=tuple(str(file) for file in files),
    )


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_text())
    except FileNotFoundError as error:
        raise StartError(
            f"{path}/config.json is not there: spec.model must name a model folder in Hugging Face's layout"
        ) from error
    except ValueError as error:
        raise StartError(f"{path}/config.json is not JSON ({error}): fetch the model again") from error
    if not isinstance(config, dict):
        raise StartError(f"{path}/config.json holds no JSON object: fetch the model again")
    return config


def _weight_files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.safetensors"))
    if not sum(file.stat().st_size for file in files):
        raise StartError(f"no *.safetensors in {path}: only safetensors weights are served; convert the model")
    return files
