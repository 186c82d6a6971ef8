"""What a gateway process is started with: the chart's settings, the environment, and the limits it holds to.

Read once at start. Never holds a secret.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tuneloop_core.constants import GATEWAY_INTERNAL_PORT, GATEWAY_PORT
from tuneloop_core.settings import BalanceSettings, Settings, load_settings
from tuneloop_gateway.outlier import Rules

SETTINGS_ENV: Final = "TUNELOOP_SETTINGS"
DEFAULT_SETTINGS: Final = "/etc/tuneloop/settings.yaml"


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds. The defaults are what the documentation states."""

    url_bytes: int = 8 * 1024
    head_bytes: int = 32 * 1024
    body_bytes: int = 4 * 1024 * 1024
    buffered_bytes: int = 256 * 1024 * 1024  # request bodies of all connections together
    connections: int = 16384
    head_seconds: float = 15.0  # from the first byte of a request to the end of its headers
    body_seconds: float = 120.0  # from the headers to the end of the body
    idle_seconds: float = 75.0  # a kept connection without a request
    stalled_seconds: float = 120.0  # a client that does not read
    connect_seconds: float = 2.0  # to a server pod
    response_seconds: float = 1800.0  # a server's silence before its first byte: a long answer that is not streamed
    stream_seconds: float = 300.0  # the same for a stream, whose head comes before its first token
    silence_seconds: float = 300.0  # a server's silence within an answer
    pool_idle_seconds: float = 4.0  # under the 5 s after which uvicorn closes a kept connection
    prefix_bytes: int = 2048  # of a prompt's beginning, by which a replica is chosen; 0: by fewest ongoing requests
    outlier: Rules = field(default_factory=Rules)  # when a server pod is passed over
    settle_seconds: float = 1.0  # how long no reachable pod may mean that the table is about to change
    retry_after_seconds: int = 10  # what a client is told when no endpoint is ready
    lame_seconds: float = 3.0  # after SIGTERM: still accepting, no longer ready
    grace_seconds: float = 25.0  # after that: how long streams may go on


@dataclass(frozen=True)
class Config:
    """Everything that a gateway process knows before it looks at the cluster."""

    settings: Settings
    limits: Limits = field(default_factory=Limits)
    host: str = ""  # empty is all addresses, IPv4 and IPv6
    port: int = GATEWAY_PORT
    internal_port: int = GATEWAY_INTERNAL_PORT
    instance: str = ""


def _limits(settings: Settings, env: Mapping[str, str]) -> Limits:
    defaults = Limits()
    return Limits(
        body_bytes=settings.gateway.max_body_bytes,
        connect_seconds=settings.gateway.timeouts.connect_seconds,
        response_seconds=settings.gateway.timeouts.first_byte_seconds,
        stream_seconds=settings.gateway.timeouts.stream_first_byte_seconds,
        silence_seconds=settings.gateway.timeouts.idle_seconds,
        stalled_seconds=settings.gateway.timeouts.slow_client_seconds,
        prefix_bytes=settings.gateway.balance.prefix_bytes,
        outlier=_rules(settings.gateway.balance),
        lame_seconds=float(env.get("TUNELOOP_GATEWAY_LAME_SECONDS", defaults.lame_seconds)),
        grace_seconds=float(env.get("TUNELOOP_GATEWAY_GRACE_SECONDS", defaults.grace_seconds)),
    )


def _rules(balance: BalanceSettings) -> Rules:
    return Rules(balance.eject_seconds, balance.eject_longest_seconds, balance.eject_share)


def load_config(env: Mapping[str, str] = os.environ) -> Config:
    """Config from the settings file and the environment.

    Raises:
        OSError: the settings file cannot be read.
        ValueError: it is not valid (``pydantic.ValidationError`` names the field), or a number is not one.
    """
    settings = load_settings(Path(env.get(SETTINGS_ENV, DEFAULT_SETTINGS)))
    return Config(
        settings=settings,
        limits=_limits(settings, env),
        host=env.get("TUNELOOP_GATEWAY_HOST", ""),
        port=int(env.get("TUNELOOP_GATEWAY_PORT", GATEWAY_PORT)),
        internal_port=int(env.get("TUNELOOP_GATEWAY_INTERNAL_PORT", GATEWAY_INTERNAL_PORT)),
        instance=env.get("POD_NAME") or socket.gethostname(),
    )
