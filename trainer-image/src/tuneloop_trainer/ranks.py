"""The train stage as several processes: which part this one plays, and how it begins and ends with the others.

The first process of a pod starts the others and waits for them; each of those runs the stage as one process would.
Only rank 0 answers for the job. Never trains.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from pydantic import ValidationError
from tuneloop_core.constants import EXIT_PEER_LOST, EXIT_TERMINATED, STAGE_INPUT_ENV
from tuneloop_core.stages import Reason, Stage, TrainInput

from tuneloop_trainer.errors import StageError
from tuneloop_trainer.paths import Paths
from tuneloop_trainer.stage import begin_log, end_at_once, input_digest, read_record, run_stage

log = logging.getLogger("tuneloop")

STARTED_SECONDS = 2.0


def run_among_others(paths: Paths) -> int | None:
    """Run this process's part to its end; None where the stage is one process's, or has its result already."""
    text = os.environ.get(STAGE_INPUT_ENV, "")
    try:
        stage_input = TrainInput.model_validate_json(text)
    except ValidationError:
        return None  # told by run_stage
    if stage_input.processes == 1:
        return None
    from tuneloop_trainer import launch  # noqa: PLC0415 - brings torch

    if launch.is_worker():
        return _as_rank(paths)
    record = read_record(Stage.TRAIN, paths)
    if record is not None and record.input_digest == input_digest(text):
        return None if launch.index() == 0 else 0
    begin_log()
    _obey_before_workers()
    return launch.launch(stage_input, paths)


def _as_rank(paths: Paths) -> int:
    from tuneloop_trainer import train  # noqa: PLC0415 - brings torch
    from tuneloop_trainer.alarm import Alarm  # noqa: PLC0415
    from tuneloop_trainer.peers import Peers  # noqa: PLC0415

    peers = Peers.from_environment()

    def give_up(words: str) -> None:
        message = f"{words}, and no process of this job trains without the others: all go on from the last checkpoint."
        end_at_once(Stage.TRAIN, StageError(Reason.PEER_LOST, message), paths)

    alarm = Alarm(peers, give_up)
    code = run_stage(Stage.TRAIN, train.run, paths, leads=peers.leads)
    alarm.close(failed=code != 0)
    if code == 0 and not peers.leads and not alarm.await_leader():
        return EXIT_PEER_LOST
    return code


def _obey_before_workers() -> None:
    """End at SIGTERM also while the agent waits for other pods: it does so in native code, where handlers do not run.

    Once there are processes to tell, torchrun's own handler tells them.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def obey() -> None:
        while number := reader.recv(1):
            if number[0] != signal.SIGTERM:
                continue
            time.sleep(STARTED_SECONDS)
            if not _children():
                log.info("stopped before all pods were there")
                sys.stdout.flush()
                os._exit(EXIT_TERMINATED)

    threading.Thread(target=obey, name="sigterm", daemon=True).start()


def _children() -> list[str]:
    found: list[str] = []
    for path in Path("/proc/self/task").glob("*/children"):
        found += path.read_text().split()
    return found
