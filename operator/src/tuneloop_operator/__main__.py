"""``python -m tuneloop_operator``: read the settings, set up logs, run."""

import asyncio
import logging
import os
import sys
from pathlib import Path

from pydantic import ValidationError

from tuneloop_core.settings import Settings, load_settings
from tuneloop_operator import logs
from tuneloop_operator.app import main

SETTINGS_PATH = "/etc/tuneloop/settings.yaml"


def read_settings(path: Path) -> Settings:
    """The settings, or an exit that names the file and the field."""
    try:
        return load_settings(path)
    except FileNotFoundError:
        sys.exit(f"{path} does not exist: mount ConfigMap tuneloop-settings there, or set TUNELOOP_SETTINGS")
    except ValidationError as error:
        sys.exit(f"{path}: {error}")


def run() -> None:
    """The entry point."""
    logs.setup(os.environ.get("TUNELOOP_LOG_LEVEL", "info"))
    settings = read_settings(Path(os.environ.get("TUNELOOP_SETTINGS", SETTINGS_PATH)))
    with asyncio.Runner() as runner:
        code = runner.run(main(settings))
        # Not by way of the loop's own end, which waits without limit for tasks that do not heed their cancellation.
        logging.shutdown()
        os._exit(code)


run()
