"""vLLM, started in our own process: the one module that imports it.

Read against vLLM 0.32 (entrypoints/launchers/api_server/entry.py): the same steps as its own server, but the HTTP
side is ours, so that health, guard, adapters and drain are. Its front end runs here, its engine core in one process
of its own. Never listens on a port.
"""

import json
import logging
import os
import tempfile
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

from starlette.types import ASGIApp

from tuneloop_server import enginelog
from tuneloop_server.adapterfolder import AdapterRefusedError
from tuneloop_server.adapters import AdapterError
from tuneloop_server.errors import StartError
from tuneloop_server.forking import prepare_fork
from tuneloop_server.imports import leave_out, read_ahead, uncollected
from tuneloop_server.modelfolder import ModelFacts
from tuneloop_server.phases import Phases, read_reported
from tuneloop_server.tasks import Task, classes_to_import

log = logging.getLogger(__name__)


class Engine:
    """A running engine. All methods belong to the event loop that ``running`` was entered in."""

    def __init__(self, client: Any, app: Any, task: Task) -> None:
        self._client = client
        self._task = task
        self._models = app.state.openai_serving_models
        self.app: ASGIApp = app
        self._hidden: dict[str, Any] = {}

    @property
    def failed(self) -> bool:
        """The engine core died; nothing but a new pod helps."""
        return bool(self._client.errored)

    async def answer_once(self) -> None:
        """One real token through the whole engine. Raises what the engine raises."""
        async for _ in self._ask({"prompt_token_ids": [1]}, f"tuneloop-warm-up-{uuid4()}"):
            pass

    def _ask(self, prompt: dict[str, list[int]], name: str) -> AsyncIterator[Any]:
        from vllm import PoolingParams, SamplingParams  # noqa: PLC0415 - vLLM is imported only where the engine runs

        if self._task == "generate":
            answers: AsyncIterator[Any] = self._client.generate(
                prompt, SamplingParams(max_tokens=1, temperature=0.0), name
            )
        else:
            answers = self._client.encode(prompt, PoolingParams(task=self._task), name)
        return answers

    async def load_adapter(self, name: str, path: Path) -> None:
        """See ``AdapterEngine``. A name that still runs hidden carries the same digest: it is shown again."""
        if self._task != "generate":
            raise AdapterRefusedError(
                "this model does not generate text, and adapters are served over models that do: publish it merged"
            )
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse  # noqa: PLC0415
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest  # noqa: PLC0415

        if name in self._hidden:
            self._models.lora_requests[name] = self._hidden.pop(name)
            return
        request = LoadLoRAAdapterRequest(lora_name=name, lora_path=str(path))
        answer = await self._models.load_lora_adapter(request)
        if isinstance(answer, ErrorResponse):
            raise AdapterError(answer.error.message)

    async def hide_adapter(self, name: str) -> None:
        """See ``AdapterEngine``."""
        request = self._models.lora_requests.pop(name, None)
        if request is not None:
            self._hidden[name] = request

    async def drop_adapter(self, name: str) -> None:
        """See ``AdapterEngine``. vLLM's own unload only forgets the name; this frees the memory."""
        request = self._hidden.pop(name, None)
        if request is not None:
            await self._client.remove_lora(request.lora_int_id)

    async def held_adapters(self) -> frozenset[str]:
        """See ``AdapterEngine``."""
        ids = await self._client.list_loras()
        known = {**self._models.lora_requests, **self._hidden}
        return frozenset(name for name, request in known.items() if request.lora_int_id in ids)

    def running(self, name: str) -> int:
        """See ``AdapterEngine``."""
        states = self._client.output_processor.request_states.values()
        return sum(1 for state in states if state.lora_name == name)

    def shutdown(self) -> None:
        """End the engine core; blocks until it is gone."""
        self._client.shutdown(timeout=0)


def _refuse(message: str) -> NoReturn:
    """What argparse has against a flag, for the person who wrote it."""
    raise StartError(f"the engine refuses a flag: {message}. Correct spec.engine.extraArgs")


class EngineStart:
    """The start of an engine: ``build`` blocks and belongs in a thread, then ``running`` in the event loop."""

    def __init__(self, arguments: list[str], accelerators: int, model: ModelFacts, phases: Phases) -> None:
        self._arguments = arguments
        self._on_cpu = accelerators == 0
        self._model = model
        self._phases = phases
        self._reports = Path(tempfile.mkdtemp(prefix="tuneloop-phases-"))

    def build(self) -> tuple[Any, Namespace]:
        """Import vLLM, read its configuration, start the engine core. Raises StartError for what a user can mend."""
        read_ahead(list(self._model.files))
        with self._phases.phase("imports"), uncollected():
            leave_out(on_cpu=self._on_cpu, multimodal=self._model.multimodal)
            self._import()
        try:
            with self._phases.phase("configuration"):
                arguments, config = self._configure()
            with self._phases.phase("engine"):
                client = self._start(config, arguments)
        except RuntimeError as error:
            # vLLM only says that its process failed; the process itself said why.
            why = enginelog.read_failure(self._reports) or f"{error}. The log says more"
            raise StartError(f"the engine could not load this model: {enginelog.with_remedy(why)}") from error
        except (ValueError, TypeError, NotImplementedError, ImportError) as error:
            words = enginelog.with_remedy(str(error))
            raise StartError(f"the engine does not take this model or these settings: {words}") from error
        for phase, seconds in read_reported(self._reports).items():
            self._phases.take_out("engine", phase, seconds)
        return client, arguments

    @asynccontextmanager
    async def running(self, client: Any, arguments: Namespace) -> AsyncIterator[Engine]:
        """vLLM's FastAPI application around the client, with its background tasks, until left."""
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state  # noqa: PLC0415
        from vllm.entrypoints.launchers.app import build_app  # noqa: PLC0415

        with self._phases.phase("http"):
            tasks = await client.get_supported_tasks()
            app = build_app(arguments, tasks, client.model_config)
            await init_app_state(client, app.state, arguments, tasks)
            engine = Engine(client, app, self._model.task)
        async with app.router.lifespan_context(app):
            yield engine

    def _import(self) -> None:
        config = self._reports.parent / f"{self._reports.name}.json"
        config.write_text(json.dumps(enginelog.logging_config(self._reports)))
        os.environ["VLLM_LOGGING_CONFIG_PATH"] = str(config)
        import vllm.entrypoints.launchers.api_server.entry  # noqa: PLC0415
        import vllm.v1.engine.async_llm  # noqa: F401, PLC0415

    def _configure(self) -> tuple[Namespace, Any]:
        from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415
        from vllm.entrypoints.launchers.cli_args import (  # noqa: PLC0415
            make_arg_parser,
            validate_parsed_serve_args,
        )
        from vllm.usage.usage_lib import UsageContext  # noqa: PLC0415
        from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

        if self._on_cpu:
            _inspect(self._model.architectures)
        parser = make_arg_parser(FlexibleArgumentParser())
        parser.error = _refuse  # it would write its words into the log, and end the process
        arguments = parser.parse_args(self._arguments)
        validate_parsed_serve_args(arguments)
        engine = AsyncEngineArgs.from_cli_args(arguments)
        return arguments, engine.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)

    def _start(self, config: Any, arguments: Namespace) -> Any:
        from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415

        if self._on_cpu:
            prepare_fork()
        return AsyncLLM.from_vllm_config(
            vllm_config=config, enable_log_requests=False, disable_log_stats=arguments.disable_log_stats
        )


def _inspect(architectures: tuple[str, ...]) -> None:
    """Import the model's class here, where vLLM would start a Python process to look at it.

    That process exists so that CUDA stays uninitialised; on CPU it only costs the time of importing everything once
    more. Architectures that vLLM does not know are left for it to refuse.
    """
    from vllm import ModelRegistry  # noqa: PLC0415

    for name in classes_to_import(architectures):
        with suppress(Exception):
            ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())
