"""When training is told to end before it is done: by SIGTERM, or by the deadline of its pod. Never saves or exits."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that SIGTERM sets."""
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def deadline(seconds: float, stop: threading.Event) -> Iterator[None]:
    """Stop as SIGTERM does when the time is over, but as ``DeadlineExceeded``, which counts as a try."""
    over = threading.Event()

    def end() -> None:
        over.set()
        stop.set()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    if seconds:
        timer.start()
    try:
        yield
    except StageError as error:
        if error.reason is not Reason.TERMINATED or not over.is_set():
            raise
        words = "Raise training.maxDuration, or checkpoint.interval where saving takes most of the time."
        message = f"the pod ran for {seconds:.0f} s, its deadline. {error.message} {words}"
        raise StageError(Reason.DEADLINE_EXCEEDED, message) from error
    finally:
        timer.cancel()
