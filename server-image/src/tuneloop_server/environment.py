"""The environment that vLLM and its processes start with, set before it is imported. Pure but for ``clear``.

Standard library only: it runs before the process starts anew (``__main__``).
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tuneloop_server.limits import Limits

CONFIG_ENV: Final = "TUNELOOP_SERVER_CONFIG"
DEFAULT_CONFIG: Final = "/etc/tuneloop/server.json"

# Whoever sets these in the pod would open what the guard closes, or send data out.
_REMOVED: Final = (
    "VLLM_SERVER_DEV_MODE",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
    "VLLM_ALLOW_INSECURE_SERIALIZATION",
    "VLLM_API_KEY",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE",
)

_FIXED: Final = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_PLUGINS": "",
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "TOKENIZERS_PARALLELISM": "false",
    # As vllm/env_override.py sets them, which imports.py leaves out on CPU.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}


def config_path(given: Mapping[str, str] = os.environ) -> Path:
    """Where server.json lies."""
    return Path(given.get(CONFIG_ENV) or DEFAULT_CONFIG)


def engine_environment(
    limits: Limits, accelerators: int, home: str, prefix: Path, given: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Variables to set over those ``given``. ``home`` is a writable folder, ``prefix`` the Python environment."""
    values = dict(_FIXED)
    values |= {"HF_HOME": f"{home}/huggingface", "VLLM_CACHE_ROOT": f"{home}/vllm", "VLLM_CONFIG_ROOT": f"{home}/vllm"}
    values |= {"TORCHINDUCTOR_CACHE_DIR": f"{home}/inductor", "TRITON_CACHE_DIR": f"{home}/triton"}
    values |= {"NUMBA_CACHE_DIR": f"{home}/numba", "XDG_CACHE_HOME": home}
    if accelerators == 0:
        values |= _cpu(_threads(limits, given), prefix)
    return values


def _threads(limits: Limits, given: Mapping[str, str]) -> str:
    """The quota's threads; fewer where the pod asks for fewer, never more."""
    asked = given.get("OMP_NUM_THREADS", "")
    return str(min(limits.threads, int(asked))) if asked.isdigit() and int(asked) else str(limits.threads)


def _cpu(threads: str, prefix: Path) -> dict[str, str]:
    values = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        # auto takes whole cores of the machine and reserves one; two pods would fight for the same.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # Milliseconds that a thread spins after a parallel region. vLLM sets this only where it binds threads;
        # Intel's default of 200 burns the quota, and crawls where neighbours want the CPU.
        "KMP_BLOCKTIME": "1",
        "KMP_TPAUSE": "0",
        # One process fewer: the worker lives in the engine's process (vLLM's platforms/cpu.py asks for both).
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    if preload := _preload(prefix):
        values["LD_PRELOAD"] = preload
    return values


def _preload(prefix: Path) -> str:
    """The OpenMP runtime and allocator that vLLM's CPU guide asks for, as far as they are there."""
    candidates = [prefix / "lib/libiomp5.so", *_SYSTEM_ALLOCATORS]
    return ":".join(str(path) for path in candidates if path.exists())


_SYSTEM_ALLOCATORS: Final = (Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"),)


def clear() -> None:
    """Remove what opens holes, in this process and so for all it starts."""
    if "vllm" in sys.modules:
        raise RuntimeError("the environment must be set before vLLM is imported")
    for name in _REMOVED:
        os.environ.pop(name, None)
