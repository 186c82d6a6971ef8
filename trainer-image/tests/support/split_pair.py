"""Two processes that split one model, and what each finds when it holds it to the same model in one piece."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tuneloop_core.api.finetunejob import Method

from tuneloop_trainer import recompute
from tuneloop_trainer.machine import Machine
from tuneloop_trainer.model import TunedModel, load_model
from tuneloop_trainer.optimizer import MasterAdam
from tuneloop_trainer.peers import Peers
from tuneloop_trainer.sharding import held_bytes
from tuneloop_trainer.tokens import Document


@dataclass(frozen=True)
class Case:
    """What is trained and computed how, and whether it is ``written`` as a model."""

    adapter: str
    dtype: torch.dtype
    recomputed: bool = False
    written: bool = False


CASES = {
    "LoRA, recomputed": Case("LoRA", torch.float32, recomputed=True),
    "all weights in bfloat16": Case("None", torch.bfloat16),
    "DoRA, merged": Case("DoRA", torch.float32, written=True),
    "all weights, written": Case("None", torch.float32, written=True),
}
USUAL = ("LoRA, recomputed", "all weights in bfloat16", "DoRA, merged")


def document(length: int, seed: int) -> Document:
    trained = np.zeros(length, dtype=np.uint8)
    trained[length // 2 :] = 1
    return Document(np.random.default_rng(seed).integers(3, 500, length, dtype=np.int32), trained)


def step(model: TunedModel, packs: list[list[Document]], weight: float, peers: Peers) -> tuple[float, MasterAdam]:
    """One step over these packs; the gradient's norm."""
    optimizer = MasterAdam(model.parameters, peers)
    for pack in packs:
        loss = model.gathered(lambda pack=pack: model.loss(pack)[0])  # type: ignore[misc]
        (loss / weight).backward()
    optimizer.gather()
    return optimizer.step(1e-3), optimizer


def compared(folder: Path, scratch: Path, name: str, peers: Peers) -> dict[str, Any]:
    case = CASES[name]
    machine = Machine(torch.device("cpu"), case.dtype, 1)
    method = Method.model_validate({"adapter": case.adapter})
    packs = [[document(48, seed), document(30, seed + 9)] for seed in range(2)]
    whole = load_model(folder, machine, method, seed=1)
    norm, expected = step(whole, packs, 78.0, Peers())
    split = load_model(folder, machine, method, seed=1, among=peers)
    if case.recomputed:
        recompute.enable(split.causal)
    ours, found = step(split, [packs[peers.rank]], 78.0, peers)
    differences = []
    for key, value in found.state().items():
        tensor = value if isinstance(value, torch.Tensor) else value.whole()
        if tensor is not None:
            reference = expected.state()[key]
            assert isinstance(reference, torch.Tensor)
            differences.append(float((tensor - reference).norm() / (reference.norm() + 1e-9)))
    if case.written:
        for kind, model in (("whole", whole), ("split", split)):
            (scratch / kind).mkdir(exist_ok=True)
            model.save_whole(folder, scratch / kind if peers.leads else None)
    with torch.no_grad():
        after = [model.gathered(lambda m=model: m.loss(packs[0])[0].item()) for model in (whole, split)]
    held, every = held_bytes(split.causal)
    return {
        "norms": [norm, ours],
        "difference": max(differences, default=0.0),
        "losses": after,
        "bytes": [held, every],
        "counts": [[model.trainable_parameters, model.total_parameters] for model in (whole, split)],
    }


def work(folder: Path, scratch: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    peers = Peers.from_environment()
    peers.join("cpu", 60)
    found = {name: compared(folder, scratch, name, peers) for name in names}
    (scratch / f"found-{peers.rank}.json").write_text(json.dumps(found))
    peers.leave()


def both(folder: Path, scratch: Path, port: int, *names: str) -> list[dict[str, Any]]:
    """What each of two processes found, in these cases."""
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common = {**os.environ, **meeting, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder), str(scratch), *(names or USUAL)]
    ranks = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    running = [subprocess.Popen(command, env=environment) for environment in ranks]
    codes = [process.wait(timeout=280) for process in running]
    assert codes == [0, 0]
    return [json.loads((scratch / f"found-{rank}.json").read_text()) for rank in range(2)]


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
