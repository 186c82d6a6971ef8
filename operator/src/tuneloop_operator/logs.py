"""JSON logs, one object a line, with the key of the resource that is being reconciled. Never logs a token or a body."""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

from tuneloop_operator.names import Key

current_key: ContextVar[Key | None] = ContextVar("current_key", default=None)


class JsonFormatter(logging.Formatter):
    """ts, level, logger, msg; object, namespace, name where a resource is being worked on; error with its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        key = current_key.get()
        if key is not None:
            line |= {"object": key.kind, "namespace": key.namespace, "name": key.name}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def setup(level: str) -> None:
    """Send all logs to stderr as JSON; kopf's own chatter only from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("kopf", "asyncio", "aiohttp"):
        logging.getLogger(name).setLevel(logging.WARNING)
