"""One server, from what we are told to an exit code: read, fit it into the pod, run. Never imports vLLM itself."""

import logging

import uvloop

from tuneloop_server.arguments import engine_arguments
from tuneloop_server.engine import EngineStart
from tuneloop_server.errors import StartError
from tuneloop_server.launcher import Launcher, report_failure
from tuneloop_server.limits import Limits, read_limits
from tuneloop_server.modelfolder import ModelFacts, read_model
from tuneloop_server.phases import Phases, process_age
from tuneloop_server.settings import Settings, read_settings
from tuneloop_server.sizing import GIB, kv_cache_bytes

log = logging.getLogger("tuneloop_server")


def main() -> int:
    """Run the server; returns the exit code."""
    logging.basicConfig(format="%(levelname)s %(asctime)s [%(name)s] %(message)s")
    log.setLevel(logging.INFO)  # of this package alone: the root's level is changed by what vLLM imports
    phases = Phases(process_age())
    try:
        settings, limits = read_settings(), read_limits()
        model = read_model(settings.model)
        start = _prepare(settings, limits, model, phases)
    except StartError as error:
        log.error("%s", error)  # noqa: TRY400 - the message says it all; a trace would only hide it
        report_failure(str(error))
        return 1
    code: int = uvloop.run(_run(settings, model, start, phases))
    return code


async def _run(settings: Settings, model: ModelFacts, start: EngineStart, phases: Phases) -> int:
    return await Launcher(settings, model, start, phases).run()


def _prepare(settings: Settings, limits: Limits, model: ModelFacts, phases: Phases) -> EngineStart:
    accelerators = settings.server.accelerators
    kv_bytes = None if accelerators else kv_cache_bytes(settings.engine, model, limits)
    log.info("limits: %.2f CPUs, %.1f GiB; KV cache: %s", limits.cpus, limits.memory_bytes / GIB, _shown(kv_bytes))
    arguments = engine_arguments(settings.server, settings.engine, model, kv_bytes)
    return EngineStart(arguments, accelerators, model, phases)


def _shown(kv_bytes: int | None) -> str:
    return "measured by the engine" if kv_bytes is None else f"{kv_bytes / GIB:.2f} GiB"
