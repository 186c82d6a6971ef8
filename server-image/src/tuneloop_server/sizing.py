"""How much memory the KV cache gets on CPU. Pure arithmetic; on GPU the engine measures for itself.

vLLM would take a share of the machine's memory; in a pod that ends with an OOM kill, or starves its neighbours.
"""

from typing import Final

from tuneloop_core.api.engine import EngineSettings
from tuneloop_server.errors import StartError
from tuneloop_server.limits import Limits
from tuneloop_server.modelfolder import ModelFacts

GIB: Final = 1 << 30

RESERVE_BYTES: Final = 2 * GIB
"""Two Python processes with torch and vLLM, activations and logits; 1.4 GiB were measured (docs/adr/0040)."""

SEQUENCES: Final = 8
"""Full-length sequences that the cache holds at most; more room has no use, since few prompts are that long."""

BLOCK_TOKENS: Final = 128
"""vLLM's block size on CPU: a sequence takes whole blocks."""

FALLBACK_BYTES: Final = 4 * GIB
"""Where config.json does not give the shapes (uncommon architectures)."""

_DTYPE_BYTES: Final = {"BFloat16": 2, "Float16": 2, "Float32": 4}


def kv_cache_bytes(engine: EngineSettings, model: ModelFacts, limits: Limits) -> int:
    """Bytes for the KV cache: what the limit leaves, at most SEQUENCES of full length.

    Raises StartError when not even one sequence of ``maxModelLength`` tokens fits.
    """
    left = limits.memory_bytes - model.weight_bytes - _adapter_bytes(engine, model) - RESERVE_BYTES
    per_token = model.kv_bytes_per_token(_DTYPE_BYTES.get(engine.dtype))
    if per_token == 0:
        return _at_least(min(left, FALLBACK_BYTES), GIB // 4, engine, limits)
    blocks = -(-engine.max_model_length // BLOCK_TOKENS) + 1
    one = blocks * BLOCK_TOKENS * per_token
    return _at_least(min(left, SEQUENCES * one), one, engine, limits)


def _adapter_bytes(engine: EngineSettings, model: ModelFacts) -> int:
    """Slots for active adapters, all linear layers: about 16 hidden sizes of A and B rows a layer and rank."""
    rank_row = 16 * model.hidden_size * model.layers * model.dtype_bytes
    return engine.lora.max_active * engine.lora.max_rank * rank_row


def _at_least(found: int, needed: int, engine: EngineSettings, limits: Limits) -> int:
    if found >= needed:
        return found
    short = (needed - found) / GIB
    raise StartError(
        f"the memory limit of {limits.memory_bytes / GIB:.1f} GiB is {short:.1f} GiB too small for one sequence of "
        f"engine.maxModelLength {engine.max_model_length}: raise spec.pod.resources.limits.memory, or lower "
        "maxModelLength or engine.lora.maxActive"
    )
