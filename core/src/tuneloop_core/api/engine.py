"""The serving engine's settings and the flags that users may add.

Flags are an allowlist, read from vLLM 0.32's arguments: only what tunes speed, memory and parsing. What opens a hole
(remote code, plugins, paths, keys, hosts, media URLs, developer endpoints, a weak hash of cached prefixes) and what
Tuneloop sets itself is simply not on it, in any spelling: vLLM also takes ``_`` for ``-`` and ``--config.key`` forms.
Never starts anything.
"""

from typing import Annotated, Final, Literal

from pydantic import Field

from tuneloop_core.api.base import SpecModel, cel, rules

ALLOWED_FLAGS: Final = (
    "async-scheduling",
    "attention-backend",
    "block-size",
    "cpu-offload-gb",
    "disable-sliding-window",
    "enable-auto-tool-choice",
    "enable-chunked-prefill",
    "enable-expert-parallel",
    "enable-prefix-caching",
    "enforce-eager",
    "gpu-memory-utilization",
    "kv-cache-dtype",
    "long-prefill-token-threshold",
    "max-logprobs",
    "max-num-batched-tokens",
    "max-num-queued-reqs",
    "max-num-seqs",
    "no-async-scheduling",
    "no-enable-chunked-prefill",
    "no-enable-prefix-caching",
    "optimization-level",
    "reasoning-parser",
    "scheduling-policy",
    "seed",
    "stream-interval",
    "tool-call-parser",
)
"""Names of vLLM flags without the dashes."""

# '/' is not in a value: no flag of ours takes a path, and parsers named by a path would be loaded as code.
_FLAG_RULE: Final = cel(
    f"self.matches('^--({'|'.join(ALLOWED_FLAGS)})(=[A-Za-z0-9_.,:-]{{1,64}})?$')",
    "only these engine flags are allowed, each as one item --FLAG or --FLAG=VALUE: " + ", ".join(ALLOWED_FLAGS),
)

LORA_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM 0.32 has room sizes for (vllm/config/lora.py, MaxLoRARanks)."""

EngineFlag = Annotated[str, Field(max_length=128, json_schema_extra=rules(_FLAG_RULE))]


class EngineLoRA(SpecModel):
    """Room for adapters."""

    model_config = {
        "json_schema_extra": rules(
            cel(
                "self.maxActive <= self.maxCached",
                "maxActive must be at most maxCached: an active adapter is also a cached one",
            )
        )
    }

    max_rank: int = Field(
        default=32,
        ge=1,
        le=512,
        description="Highest rank of an adapter that can be loaded; more takes memory from the KV cache.",
        json_schema_extra=rules(
            cel(
                f"self in [{', '.join(map(str, LORA_RANKS))}]",
                f"maxRank must be one of {', '.join(map(str, LORA_RANKS))}: the engine has room sizes for these",
            )
        ),
    )
    max_active: int = Field(default=8, ge=1, le=256, description="Adapters that one batch may mix.")
    max_cached: int = Field(default=64, ge=1, le=1024, description="Adapters kept in host memory.")


class EngineSettings(SpecModel):
    """The engine that serves the model. A change makes a new revision."""

    type: Literal["vLLM"] = Field(default="vLLM", description="vLLM, on GPU and on CPU.")
    max_model_length: int = Field(
        default=4096, ge=16, le=1_048_576, description="Longest prompt and answer together, tokens."
    )
    dtype: Literal["Auto", "BFloat16", "Float16", "Float32"] = Field(
        default="Auto", description="Number format of weights and activations; Auto is the model's own."
    )
    quantization: Literal["None", "FP8", "AWQ", "GPTQ"] = Field(
        default="None",
        description="Smaller weights at some loss of quality. None: as the model's own config.json says, which also "
        "serves models that are published quantized. FP8 makes weights of 16 bits smaller while they load, GPU only "
        "(compute capability 7.5 and up). AWQ and GPTQ insist on a model that is published so.",
    )
    lora: EngineLoRA = Field(default=EngineLoRA(), description="Room for adapters.")
    extra_args: list[EngineFlag] = Field(
        default=[],
        max_length=32,
        description="Further flags of the engine, one an item, such as --max-num-seqs=64; an allowlist.",
    )
