"""The train stage in a process of its own that dies as ``kill -9`` makes it die, at a place that a test chose.

``python train_and_die.py pack N``: after N packs, with a checkpoint every 10 packs.
``python train_and_die.py write N``: in the middle of writing the Nth checkpoint.
``python train_and_die.py hang N``: stands still for ever after N packs.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from tuneloop_trainer import checkpoints, machine, train
from tuneloop_trainer.__main__ import main
from tuneloop_trainer.loop import Loop

EVERY = 10


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stand_still() -> None:
    threading.Event().wait()


def at_pack(number: int, act: Any) -> None:
    original, seen = Loop._pack, iter(range(1, 10**6))

    def counted(self: Loop, *args: Any) -> None:
        original(self, *args)
        now = next(seen)
        if now == number:
            act()
        if now % EVERY == 0:
            self.save()

    Loop._pack = counted  # type: ignore[method-assign]


def at_write(number: int) -> None:
    original, seen = checkpoints.seal, iter(range(1, 10**6))

    def torn(aside: Path, target: Path) -> str:
        if next(seen) == number:
            file = aside / "state.safetensors"
            file.write_bytes(file.read_bytes()[:1000])
            die()
        return original(aside, target)

    checkpoints.seal = torn  # type: ignore[assignment]


if __name__ == "__main__":
    what, count = sys.argv[1], int(sys.argv[2])
    machine.cpu_dtype = lambda: torch.float32  # type: ignore[assignment]
    train.PACK_TOKENS = {"cpu": 128}  # type: ignore[misc]
    at_pack(0 if what == "write" else count, stand_still if what == "hang" else die)
    if what == "write":
        at_write(count)
    sys.exit(main(["train"]))
