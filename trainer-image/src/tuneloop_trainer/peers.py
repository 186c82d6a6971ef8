"""The processes that train one job together, and all that they say to each other.

Every rank runs the same program on the same data; what they must agree on (a stop, a bad number, a position, the
gradients) goes through here. A process that trains alone is a world of one, for which nothing is sent. Never decides.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError

WORLD_ENV, RANK_ENV, LOCAL_RANK_ENV = "WORLD_SIZE", "RANK", "LOCAL_RANK"  # torchrun sets them
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
LOST = ("gloo", "nccl", "connection", "socket", "broken pipe", "timed out waiting")
"""What torch's messages about a peer have in common: gloo raises a plain RuntimeError."""
PATIENCE = timedelta(days=7)  # with a leader that reads or writes the store; who ends meanwhile, the alarm sees


@dataclass(frozen=True)
class Peers:
    """This process among ``world``."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> "Peers":
        """As torchrun started this process; alone where it did not."""
        values = (int(os.environ.get(name, default)) for name, default in _DEFAULTS)
        return cls(*values)

    @property
    def leads(self) -> bool:
        """Whether this one writes files and tells progress."""
        return self.rank == 0

    @property
    def many(self) -> bool:
        """Whether there is anybody to talk to."""
        return self.world > 1

    def join(self, device: str, timeout: float) -> None:
        """Meet all others; ``timeout`` is how many seconds a message may take. Raises ``PeerLost``."""
        if not self.many:
            return
        try:
            dist.init_process_group(BACKENDS[device], timeout=timedelta(seconds=timeout))
            _patient()
        except (RuntimeError, ValueError) as error:
            raise peer_lost(error) from error

    def leave(self) -> None:
        """Forget the others."""
        if self.many and dist.is_initialized():
            dist.destroy_process_group()

    def most(self, values: Sequence[float]) -> list[float]:
        """The largest of each value over all ranks."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all ranks."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def wait(self) -> None:
        """Until all are here, however long one needs for the store: longer than a message may take."""
        if self.many:
            dist.all_reduce(torch.zeros(1), group=_patient())

    def sum_(self, tensor: torch.Tensor) -> None:
        """Put the sum over all ranks into each one's tensor; the same bits everywhere."""
        if self.many:
            dist.all_reduce(tensor)

    def spread_(self, tensor: torch.Tensor) -> None:
        """Put the leader's tensor into each one's."""
        if self.many:
            dist.broadcast(tensor, src=0)

    def tell(self, value: Any) -> Any:
        """The leader's value, for all: anything that JSON can say."""
        if not self.many:
            return value
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        size = torch.tensor([len(data)])
        dist.broadcast(size, src=0)
        buffer = data if self.leads else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(buffer, src=0)
        return json.loads(buffer.numpy().tobytes())

    def _reduced(self, values: Sequence[float], operation: Any) -> list[float]:
        if not self.many:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=operation)
        return [float(value) for value in tensor]


@cache
def _patient() -> Any:
    """The same processes once more, whose messages may take ``PATIENCE``; all must ask for the first time together."""
    return dist.new_group(timeout=PATIENCE, backend="gloo")


ALONE = Peers()
_DEFAULTS = ((RANK_ENV, "0"), (WORLD_ENV, "1"), (LOCAL_RANK_ENV, "0"))


def is_lost(error: BaseException) -> bool:
    """Whether torch says so that a peer does not answer any more."""
    words = str(error).lower()
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and any(word in words for word in LOST))


def peer_lost(error: BaseException) -> StageError:
    """The error of a process that can do nothing without the others."""
    said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    message = f"another process of this job ended or does not answer, and none trains without it: {said}"
    return StageError(Reason.PEER_LOST, message)
