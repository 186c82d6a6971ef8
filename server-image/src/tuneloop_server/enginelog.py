"""The engine's log, as seen from within its process: how long the weights took.

vLLM loads weights in a process of its own and tells the time only in its log. Its logging is configured by a file
(VLLM_LOGGING_CONFIG_PATH), so a handler of ours can sit there and write the number down. Never changes a record.
"""

import logging
import re
from pathlib import Path
from typing import Any, Final

_WEIGHTS: Final = re.compile(r"Loading weights took ([0-9.]+) seconds")


class PhaseHandler(logging.Handler):
    """Writes the seconds of a phase into ``folder``/weights."""

    def __init__(self, folder: str) -> None:
        super().__init__(logging.INFO)
        self._folder = Path(folder)

    def emit(self, record: logging.LogRecord) -> None:
        """One record; only the one about weights matters."""
        if found := _WEIGHTS.search(record.getMessage()):
            (self._folder / "weights").write_text(found[1])


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
