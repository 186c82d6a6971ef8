"""Start the engine alone, with a KV cache of so many bytes, and print why it does not start: ``MODEL BYTES``.

For what the server's own arithmetic keeps from happening on CPU, and what an accelerator's memory decides elsewhere.
"""

import os
import sys
import tempfile
from pathlib import Path

from tuneloop_core.api.engine import EngineSettings
from tuneloop_core.serving import ServerConfig
from tuneloop_server.arguments import engine_arguments
from tuneloop_server.engine import EngineStart
from tuneloop_server.environment import engine_environment
from tuneloop_server.errors import StartError
from tuneloop_server.limits import read_limits
from tuneloop_server.modelfolder import read_model
from tuneloop_server.phases import Phases


def main(folder: str, kv_bytes: int) -> None:
    """Print the reason of a start that fails."""
    engine = EngineSettings(max_model_length=2048)
    config = ServerConfig(served_name="tiny", model_path=folder, engine=engine.to_dict(), accelerators=0)
    model = read_model(Path(folder))
    try:
        EngineStart(engine_arguments(config, engine, model, kv_bytes), 0, model, Phases(0.0)).build()
    except StartError as error:
        print(error, flush=True)
        os._exit(0)
    sys.exit("it started")


if __name__ == "__main__":
    os.environ.update(engine_environment(read_limits(), 0, tempfile.mkdtemp(), Path(sys.prefix)))
    main(sys.argv[1], int(sys.argv[2]))
