"""Two processes of which the leader is late, by more than a message may take."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tuneloop_trainer.peers import Peers

MESSAGE_SECONDS = 5.0


def work(folder: Path) -> None:
    peers = Peers.from_environment()
    (folder / f"ready-{peers.rank}").touch()
    while len(list(folder.glob("ready-*"))) < peers.world:  # a slow import is none of the meeting's
        time.sleep(0.05)
    peers.join("cpu", MESSAGE_SECONDS)
    if peers.leads:
        time.sleep(MESSAGE_SECONDS + 2)
    peers.wait()
    assert peers.total([1.0]) == [2.0]
    peers.leave()


def both(folder: Path, port: int) -> list[int]:
    """Their exit codes."""
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, __file__, str(folder)]
    ranks = [{**os.environ, **meeting, "RANK": str(rank), "OMP_NUM_THREADS": "1"} for rank in range(2)]
    running = [subprocess.Popen(command, env=environment) for environment in ranks]
    return [process.wait(timeout=200) for process in running]


if __name__ == "__main__":
    work(Path(sys.argv[1]))
