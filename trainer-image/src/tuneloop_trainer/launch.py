"""Starts the processes of one pod among those of all pods, with torchrun's agent (torch.distributed.elastic).

One process an accelerator, or one on CPU. The agent of the first pod holds the store at which all meet; a process that
ends badly ends its pod, and the Job makes the pods anew: all of them, since no process goes on without the others.
Never trains.
"""

import contextlib
import logging
import os
import socket
import sys
import time
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from tuneloop_core.constants import EXIT_TERMINATED, STOPPING_SECONDS
from tuneloop_core.stages import Reason, Stage, TrainInput

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.paths import Paths
from tuneloop_trainer.peers import RANK_ENV, is_lost
from tuneloop_trainer.stage import fail

INDEX_ENV = "JOB_COMPLETION_INDEX"  # the Job controller sets it in each pod of an indexed Job
WORKER = ("-m", "tuneloop_trainer", Stage.TRAIN.value)
RUN_ID = "tuneloop"  # also the name of a folder
ALONE = "127.0.0.1:29500"
MEETING_SECONDS = 1800  # for all pods to be there: the last one may pull its image or wait for a node
KNOCK_SECONDS = 2.0
KNOCK = timedelta(seconds=10)

log = logging.getLogger("tuneloop")


def is_worker() -> bool:
    """Whether torchrun's agent started this process."""
    return RANK_ENV in os.environ


def index() -> int:
    """Which of the job's pods this is."""
    return int(os.environ.get(INDEX_ENV, "0"))


def launch(stage_input: TrainInput, paths: Paths) -> int:
    """Run this pod's processes to their end; the exit code of the first that failed, 143 after SIGTERM."""
    try:
        _await_first(stage_input.rendezvous)
        elastic_launch(_settings(stage_input), sys.executable)(*WORKER)
    except SignalException:
        return EXIT_TERMINATED
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    except (RuntimeError, RendezvousError, TimeoutError) as error:
        if isinstance(error, RuntimeError) and not is_lost(error):
            raise
        return fail(Stage.TRAIN, _missed(stage_input, error), paths)
    return 0


def _await_first(rendezvous: str) -> None:
    """Wait until a first pod listens that no pod of this index met before; raises ``TimeoutError``.

    After a failure this pod may begin while the first pod of the round before is still ending: what it would meet
    there never comes. And torch looks a name up once, while each new first pod has another address.
    """
    if index() == 0 or not rendezvous:
        return
    host, _, port = rendezvous.rpartition(":")
    until = time.monotonic() + MEETING_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(RuntimeError, OSError):
            socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()
            store = TCPStore(host, int(port), is_master=False, timeout=KNOCK, wait_for_workers=False)
            if store.add(f"tuneloop/pod/{index()}", 1) == 1:
                return
        time.sleep(KNOCK_SECONDS / 2)
    raise TimeoutError(f"{rendezvous} does not answer")


def _settings(stage_input: TrainInput) -> LaunchConfig:
    """A fixed number of pods, each with its index; no restarts within a pod, so that the Job counts them."""
    return LaunchConfig(
        min_nodes=stage_input.nodes,
        max_nodes=stage_input.nodes,
        nproc_per_node=max(1, stage_input.accelerators),
        run_id=RUN_ID,
        rdzv_backend="static",
        rdzv_endpoint=stage_input.rendezvous or ALONE,
        rdzv_configs={"rank": index(), "timeout": MEETING_SECONDS},
        max_restarts=0,
        monitor_interval=0.5,
        shutdown_timeout=STOPPING_SECONDS,
    )


def _missed(stage_input: TrainInput, error: BaseException) -> StageError:
    """The pods did not find each other: the first one's failure counts as a try, the others only follow it."""
    message = (
        f"the {stage_input.nodes} pods of this job did not meet at {stage_input.rendezvous} within {MEETING_SECONDS} s "
        f"({str(error).splitlines()[0][:200]}). Look whether all have a node (kubectl get pods), and whether a network "
        "policy keeps them apart."
    )
    return StageError(Reason.PEERS_MISSING if index() == 0 else Reason.PEER_LOST, message)
