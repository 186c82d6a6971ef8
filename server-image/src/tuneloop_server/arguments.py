"""server.json to vLLM's command line, as pure functions.

Only flags of the allowlist come through from ``extraArgs``, checked here again although the API server has checked
them: the ConfigMap is what we are given, not the resource.
"""

import re
from typing import Final

from tuneloop_core.api.engine import ALLOWED_FLAGS, LORA_RANKS, EngineSettings
from tuneloop_core.serving import ServerConfig
from tuneloop_server.errors import StartError
from tuneloop_server.modelfolder import ModelFacts
from tuneloop_server.tasks import engine_flags

_FLAG: Final = re.compile(rf"--({'|'.join(ALLOWED_FLAGS)})(=[A-Za-z0-9_.,:-]{{1,64}})?")

_QUANTIZATION: Final = {"FP8": "fp8", "AWQ": "awq", "GPTQ": "gptq"}

# No host has this name (RFC 6761): whoever sends a picture must send its bytes, the server fetches nothing.
NO_MEDIA_DOMAIN: Final = "media-urls-are-refused.invalid"


def engine_arguments(
    config: ServerConfig, engine: EngineSettings, model: ModelFacts, kv_bytes: int | None
) -> list[str]:
    """vLLM's arguments. ``kv_bytes`` is None on GPU, where the engine measures. Raises StartError."""
    arguments = [
        f"--model={config.model_path}",
        f"--served-model-name={config.served_name}",
        f"--max-model-len={engine.max_model_length}",
        f"--dtype={engine.dtype.lower()}",
        f"--distributed-executor-backend={'mp' if config.accelerators > 1 else 'uni'}",
        f"--tensor-parallel-size={max(1, config.accelerators)}",
        "--load-format=safetensors",
        f"--allowed-media-domains={NO_MEDIA_DOMAIN}",
        "--disable-fastapi-docs",
        "--disable-uvicorn-access-log",
        *(_lora(engine) if model.task == "generate" else ()),
        *engine_flags(model.task, model.architectures, on_cpu=config.accelerators == 0),
    ]
    if kv_bytes is not None:
        arguments.append(f"--kv-cache-memory-bytes={kv_bytes}")
    if engine.quantization != "None":
        arguments.append(f"--quantization={_QUANTIZATION[engine.quantization]}")
    return arguments + _extra(engine)


def _lora(engine: EngineSettings) -> list[str]:
    room = next((rank for rank in LORA_RANKS if rank >= engine.lora.max_rank), None)
    if room is None:
        raise StartError(f"engine.lora.maxRank is {engine.lora.max_rank}; the engine takes at most {LORA_RANKS[-1]}")
    return [
        "--enable-lora",
        f"--max-loras={engine.lora.max_active}",
        f"--max-cpu-loras={max(engine.lora.max_cached, engine.lora.max_active)}",
        f"--max-lora-rank={room}",
    ]


def _extra(engine: EngineSettings) -> list[str]:
    for flag in engine.extra_args:
        if not _FLAG.fullmatch(flag):
            raise StartError(
                f"engine.extraArgs holds {flag!r}; allowed are --FLAG or --FLAG=VALUE of: {', '.join(ALLOWED_FLAGS)}"
            )
    return list(engine.extra_args)
