"""The train stage of one of several pods, in small packs; its processes die at a place a test chose.

TUNELOOP_TEST_DRIVE: ``kill N`` at the Nth pack as ``kill -9`` does, ``term N`` as a drain does (SIGTERM to the pod's
first process); empty does nothing.
"""

import os
import signal
import sys
from collections.abc import Callable

import torch

from tuneloop_trainer import launch, machine
from tuneloop_trainer.__main__ import main


def act_at_pack(number: int, act: Callable[[], None]) -> None:
    from tuneloop_trainer.loop import Loop  # noqa: PLC0415 - only the agent's processes train

    original, seen = Loop._pack, iter(range(1, 10**6))

    def counted(self: Loop, *args: object) -> None:
        if next(seen) == number:
            act()
        original(self, *args)  # type: ignore[arg-type]

    Loop._pack = counted  # type: ignore[method-assign]


ACTS: dict[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "term": lambda: os.kill(os.getppid(), signal.SIGTERM),
}

if __name__ == "__main__":
    launch.WORKER = (__file__,)
    what, _, count = os.environ["TUNELOOP_TEST_DRIVE"].partition(" ")
    if launch.is_worker():
        from tuneloop_trainer import train

        machine.cpu_dtype = lambda: torch.float32  # type: ignore[assignment]
        train.PACK_TOKENS = {"cpu": 128}  # type: ignore[misc]
        if what:
            act_at_pack(int(count), ACTS[what])
    sys.exit(main(["train"]))
