"""server.json: read once at start, with words for what is wrong with it. Never writes."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from tuneloop_core.api.engine import EngineSettings
from tuneloop_core.constants import SERVER_PORT
from tuneloop_core.serving import ServerConfig
from tuneloop_server.environment import CONFIG_ENV, config_path
from tuneloop_server.errors import StartError


@dataclass(frozen=True)
class Settings:
    """Everything the launcher is told. Times in seconds."""

    server: ServerConfig
    engine: EngineSettings
    folder: Path  # of the ConfigMap: adapters.json and guard.json lie beside server.json
    artifacts: Path
    port: int
    grace_seconds: float  # after SIGTERM requests may run this long; keep it under terminationGracePeriodSeconds
    settle_seconds: float  # after SIGTERM new requests are still served: endpoints take a moment to disappear

    @property
    def model(self) -> Path:
        """The model's folder."""
        return Path(self.server.model_path)


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the environment and the file it names. Raises StartError."""
    path = config_path(environment)
    server = _server(path)
    return Settings(
        server=server,
        engine=_engine(server, path),
        folder=path.parent,
        artifacts=Path(environment.get("TUNELOOP_SERVER_ARTIFACTS") or "/artifacts"),
        port=int(_seconds(environment, "TUNELOOP_SERVER_PORT", SERVER_PORT)),
        grace_seconds=_seconds(environment, "TUNELOOP_SERVER_GRACE_SECONDS", 110),
        settle_seconds=_seconds(environment, "TUNELOOP_SERVER_SETTLE_SECONDS", 2),
    )


def _server(path: Path) -> ServerConfig:
    try:
        return ServerConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise StartError(
            f"{path} ({CONFIG_ENV}) cannot be read: {error.strerror}; mount the ConfigMap there"
        ) from error
    except ValidationError as error:
        raise StartError(f"{path} is no ServerConfig: {_first(error)}") from error


def _engine(server: ServerConfig, path: Path) -> EngineSettings:
    try:
        return EngineSettings.model_validate(server.engine)
    except ValidationError as error:
        raise StartError(f"{path}: engine.{_first(error)}") from error


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in detail['loc'])}: {detail['msg']}, found {detail['input']!r:.200}"


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name) or str(default)
    try:
        return float(text)
    except ValueError as error:
        raise StartError(f"{name} must be a number, found {text!r}") from error
