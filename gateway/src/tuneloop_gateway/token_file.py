"""The gateway's own token towards servers: a projected service-account token that the kubelet replaces in time.

Never logs it and never hands it to anybody but a server pod.
"""

import logging
from pathlib import Path

log = logging.getLogger(__name__)


class TokenFile:
    """A file with a token, read again when it changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._missing = False
        self.value = b""

    def refresh(self) -> None:
        """Read the file if it is another than last time; called every few seconds."""
        try:
            found = self._path.stat()
            if (found.st_ino, found.st_mtime_ns) == self._seen:
                return
            self.value = self._path.read_bytes().strip()
            self._seen, self._missing = (found.st_ino, found.st_mtime_ns), False
        except OSError as error:
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        """Once; the old token is used on, since it may well be valid still."""
        if not self._missing:
            log.warning(
                "no token for model servers; they will refuse this gateway",
                extra={"path": str(self._path), "error": error.strerror},
            )
        self._missing = True
