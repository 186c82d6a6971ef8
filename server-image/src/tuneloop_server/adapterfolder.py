"""Is this folder an adapter that this engine can load? Asked before the engine sees it.

The engine's own refusals come late and in its words, and some of them hurt requests of others; here every refusal says
what was found and what would be right. Reads two small JSON texts (the config and the safetensors header), no tensor.
"""

import json
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from tuneloop_core.adapterconfig import CONFIG_FILE, WEIGHTS_FILE, kind_faults, rank_faults
from tuneloop_core.serving import Adapter
from tuneloop_server.modelfolder import ModelFacts

_PATH: Final = re.compile(r"artifacts/([0-9a-f]{12,128})")
_LAYER: Final = re.compile(r"\.layers\.(\d+)\.")
_HEADER_LIMIT: Final = 64 << 20

# Inputs of these have the model's hidden size in every architecture that has them.
_HIDDEN_INPUT: Final = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")


class AdapterMissingError(Exception):
    """The folder is not there (yet): another pod may still be writing it. Worth another look."""


class AdapterRefusedError(Exception):
    """The folder will never load in this engine; another try with the same digest changes nothing."""


def folder_of(adapter: Adapter, artifacts: Path) -> Path:
    """Where the adapter lies in this pod. Raises AdapterRefusedError where path and digest do not belong together."""
    found = _PATH.fullmatch(adapter.path)
    if found is None or f"sha256:{found[1]}" != adapter.digest:
        raise AdapterRefusedError(
            f"its path {adapter.path!r} is not artifacts/<hex> of its digest {adapter.digest}; publish it again"
        )
    return artifacts / found[1]


def is_complete(folder: Path) -> bool:
    """Whether both files are still there; reads neither."""
    return all((folder / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE))


def check_adapter(folder: Path, digest: str, max_rank: int, model: ModelFacts) -> None:
    """Return when the engine can load it. Raises AdapterMissingError or AdapterRefusedError."""
    config = _config(folder)
    header = _header(folder / WEIGHTS_FILE)
    found = [*_digest_faults(folder, digest), *config_faults(config, max_rank), *shape_faults(header, model)]
    if found:
        raise AdapterRefusedError("; ".join(found))


def config_faults(config: dict[str, Any], max_rank: int) -> Iterable[str]:
    """What in adapter_config.json this engine cannot do."""
    yield from kind_faults(config)
    yield from rank_faults(config, max_rank)


def shape_faults(header: dict[str, Any], model: ModelFacts) -> Iterable[str]:
    """Signs that it was made for another base: hidden size or number of layers differ. At most one of each."""
    inputs = {
        tensor["shape"][-1]
        for name, tensor in header.items()
        if name.endswith(".lora_A.weight") and name.split(".")[-3] in _HIDDEN_INPUT
    }
    if model.hidden_size and inputs - {model.hidden_size}:
        other = max(inputs - {model.hidden_size})
        yield f"it was made for a base of hidden size {other}, this base has {model.hidden_size}"
    layers = [int(found[1]) for name in header if (found := _LAYER.search(name))]
    if model.layers and layers and max(layers) >= model.layers:
        yield f"it adapts layer {max(layers)}, this base has layers 0 to {model.layers - 1}"


def _digest_faults(folder: Path, digest: str) -> Iterable[str]:
    """The artifact names its own digest; a folder under another's name is somebody's mistake."""
    try:
        written = (folder / "DIGEST").read_text().strip().removeprefix("sha256:")
    except OSError:
        return
    if written != digest.removeprefix("sha256:"):
        yield f"its DIGEST file says {written[:12]}, not {digest[:19]}: publish it again"


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise AdapterMissingError(f"waiting for {path}: it is not in the store yet") from error
    except ValueError as error:
        raise AdapterRefusedError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise AdapterRefusedError(f"{path} holds no JSON object")
    return config


def _header(path: Path) -> dict[str, Any]:
    """The safetensors header: 8 bytes of length, little endian, then JSON of names, types and shapes."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _HEADER_LIMIT:
                raise AdapterRefusedError(f"{path} is no safetensors file: its header would be {length} bytes")
            header = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise AdapterMissingError(f"waiting for {path}: it is not in the store yet") from error
    except (struct.error, ValueError) as error:
        raise AdapterRefusedError(f"{path} is no safetensors file: {error}") from error
    header.pop("__metadata__", None)
    return dict(header)
