"""What an adapter says of itself in ``adapter_config.json`` (PEFT's format), and what no engine of ours can load.

Read in two places: by the fetch of an adapter, before its weights are, and by every server before its engine sees it.
The refusals are those of vLLM 0.32 (vllm/lora/peft_helper.py), in words that say what to do. Never does I/O.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

from pydantic import Field

from tuneloop_core.stages import Wire

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"

# These initialisations leave the base model as it was; others change its weights when PEFT loads the adapter.
_PLAIN_INITIALISATIONS: Final = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_ODD_KINDS: Final = {
    "alora_invocation_tokens": "an activated LoRA (aLoRA)",
    "layer_replication": "a LoRA that replicates layers",
    "use_bdlora": "a block-diagonal LoRA",
    "use_qalora": "a QALoRA",
}
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


class AdapterFacts(Wire):
    """The part of the config that decides whether an adapter fits a deployment."""

    rank: int  # the highest, patterns included
    base: str = Field(default="", max_length=512)  # hf://ORG/NAME[@COMMIT] or pvc://CLAIM/PATH; empty: it does not say
    target_modules: str = Field(default="", max_length=512)  # for people


class AdapterFetchResult(Wire):
    """What a fetch of an adapter answers: where it lies in the store, and what it says of itself."""

    uri: str  # resolved: hf://org/name@<commit>, else the uri as it was
    path: str  # artifacts/<digest hex>
    digest: str  # sha256:<hex>, over the sorted file digests
    bytes: int
    cached: bool = False  # the same files were in the store already
    facts: AdapterFacts


def read_facts(config: dict[str, Any]) -> AdapterFacts:
    """The facts of a config that ``kind_faults`` finds nothing in."""
    modules = config.get("target_modules") or ""
    shown = modules if isinstance(modules, str) else ",".join(sorted(map(str, modules)))
    return AdapterFacts(rank=highest_rank(config), base=_base(config), target_modules=shown[:512])


def highest_rank(config: dict[str, Any]) -> int:
    """Of all modules; 0 where there is none."""
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    return max((rank for rank in ranks if isinstance(rank, int)), default=0)


def kind_faults(config: dict[str, Any]) -> Iterable[str]:
    """What in the config no engine can load, whatever its settings."""
    if config.get("peft_type") != "LORA":
        yield f"peft_type is {config.get('peft_type')!r}, only LORA can be loaded as an adapter"
    missing = [key for key in ("r", "lora_alpha", "target_modules") if config.get(key) in (None, "", [])]
    if missing:
        yield f"{CONFIG_FILE} lacks {', '.join(missing)}: save the adapter with PEFT's save_pretrained"
    if config.get("use_dora"):
        yield "it uses DoRA, which the engine cannot load: publish it merged"
    if config.get("modules_to_save"):
        yield f"it carries whole modules ({', '.join(map(str, config['modules_to_save']))}): publish it merged"
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        yield "it trains biases, which the engine cannot load: train with bias none"
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in _PLAIN_INITIALISATIONS:
        yield f"it was initialised with {start}, which changes the base model: convert it to a plain LoRA"
    for key, words in _ODD_KINDS.items():
        if config.get(key):
            yield f"it is {words} ({key}), which the engine cannot load: train a plain LoRA, or publish it merged"


def rank_faults(config: dict[str, Any], max_rank: int) -> Iterable[str]:
    """Whether the engine has room for it."""
    highest = highest_rank(config)
    if not 0 < highest <= max_rank:
        yield f"its rank is {highest}, the engine has room for 1 to {max_rank}: raise engine.lora.maxRank"


def _base(config: dict[str, Any]) -> str:
    """The base as a URI of ours; a path on somebody's machine says nothing."""
    name, revision = str(config.get("base_model_name_or_path") or ""), str(config.get("revision") or "")
    if name.startswith("pvc://"):
        return name
    if not _HUB_NAME.fullmatch(name):
        return ""
    return f"hf://{name}@{revision}" if _COMMIT.fullmatch(revision) else f"hf://{name}"
