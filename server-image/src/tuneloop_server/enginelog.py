"""The engine's log, as seen from within its process: how long weights and compilation took, and why it failed.

vLLM loads weights in a process of its own and tells these only in its log. Its logging is configured by a file
(VLLM_LOGGING_CONFIG_PATH), so a handler of ours can sit there and write them down. Never changes a record.
"""

import logging
import re
import traceback
from pathlib import Path
from typing import Any, Final

_FAILURE: Final = "failure.txt"
_FAILURE_LIMIT: Final = 800  # characters; a termination message holds 1024 in all

_UNKNOWN: Final = (
    "Name in spec.model a model whose architecture vLLM's list of supported models has, or ask for a server image with "
    "a later vLLM."
)
_REMEDIES: Final = {
    "are not supported for now": _UNKNOWN,
    "does not recognize this architecture": _UNKNOWN,
    "': -9": "Its process was killed, most likely for memory: lower engine.maxModelLength, take a smaller model, or "
    "raise spec.pod.resources.limits.memory.",
    "Bfloat16 is only supported on GPUs": "Set engine.dtype to Float16, or to Auto, which takes what this GPU has.",
}
"""What to change in the spec, where vLLM names only its own flags, or what nobody in a pod can do: by what it says."""
_BESIDE: Final = re.compile(r" Supported architectures: .*| This could be because of an issue with.*", re.DOTALL)
"""Lists of hundreds of names, and advice to install something."""
_WORDS_LIMIT: Final = 640  # characters with the remedy: the status shows some 700 of what a server said last

_TIMES: Final = {
    "weights": re.compile(r"Loading weights took ([0-9.]+) seconds"),
    "compile": re.compile(r"torch\.compile took ([0-9.]+) s in total"),
}


class PhaseHandler(logging.Handler):
    """Writes the seconds of a phase into a file of its name in ``folder``."""

    def __init__(self, folder: str) -> None:
        super().__init__(logging.INFO)
        self._folder = Path(folder)

    def emit(self, record: logging.LogRecord) -> None:
        """One record; only those about times matter."""
        message = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None and record.levelno >= logging.ERROR:
            _keep_failure(self._folder, record.exc_info[1])
        for phase, pattern in _TIMES.items():
            if found := pattern.search(message):
                (self._folder / phase).write_text(found[1])


def _keep_failure(folder: Path, error: BaseException) -> None:
    """The first one: what came after it are its consequences."""
    file = folder / _FAILURE
    if not file.exists():
        file.write_text(f"{type(error).__name__}: {str(error) or _where(error)}"[:_FAILURE_LIMIT])


def _where(error: BaseException) -> str:
    """The line that raised it: an assertion without words says nothing else."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].line} ({Path(frames[-1].filename).name}, in {frames[-1].name})" if frames else ""


def read_failure(folder: Path) -> str:
    """What the engine's process said when it failed; empty where it said nothing (the kernel killed it)."""
    file = folder / _FAILURE
    return file.read_text() if file.exists() else ""


def with_remedy(words: str) -> str:
    """The engine's words, cut so that there is room for the setting of ours that mends it, where one does."""
    found = next((remedy for said, remedy in _REMEDIES.items() if said in words), "")
    kept = _BESIDE.sub("", words)[: _WORDS_LIMIT - len(found) - 1]
    return f"{kept} {found}".rstrip()


def logging_config(folder: Path) -> dict[str, Any]:
    """vLLM's log as it is by default, with our handler beside it."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "vllm": {
                "class": "logging.Formatter",
                "datefmt": "%m-%d %H:%M:%S",
                "format": "%(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s",
            }
        },
        "handlers": {
            "vllm": {"class": "logging.StreamHandler", "formatter": "vllm", "stream": "ext://sys.stdout"},
            "phases": {"class": "tuneloop_server.enginelog.PhaseHandler", "folder": str(folder)},
        },
        "loggers": {"vllm": {"handlers": ["vllm", "phases"], "level": "INFO", "propagate": False}},
    }
