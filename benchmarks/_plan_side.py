"""One side of benchmarks/plan.py, in the trainer's environment: prints its numbers as the last line, JSON.

``make FOLDER CONFIG`` writes a model of random weights; ``measure FOLDER RUN`` trains it for a few steps with the
trainer's own loop and tells the most memory that it took, and what the imports alone took. They are two processes, so
that making the model does not count.
"""

import json
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tuneloop_core.api.finetunejob import Method, Training
from tuneloop_trainer import recompute
from tuneloop_trainer.batches import Schedule
from tuneloop_trainer.checkpoints import Checkpoints, TrainingState
from tuneloop_trainer.loop import PACK_TOKENS, Loop
from tuneloop_trainer.machine import outside_allocator, peak_memory, prepare_machine
from tuneloop_trainer.model import load_model
from tuneloop_trainer.objectives import Supervised
from tuneloop_trainer.progress import Board
from tuneloop_trainer.tokens import Examples, TokenStore, TokenWriter


def make(folder: Path, config: dict[str, Any]) -> None:
    """A model of this configuration with random weights, in bfloat16 as models are published."""
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415 - this side only

    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    print(json.dumps({"parameters": sum(p.numel() for p in model.parameters())}))


def measure(folder: Path, run: dict[str, Any]) -> None:
    """A few steps of the trainer; bytes of the process before the model was loaded and at the highest point."""
    machine = prepare_machine(accelerators=int(torch.cuda.is_available()))
    import transformers.models.auto.modeling_auto  # noqa: F401, PLC0415 - part of the imports

    baseline = resident("VmRSS")
    model = load_model(folder, machine, Method(adapter=run["adapter"]), seed=7)
    if run["recompute"]:
        recompute.enable(model.causal)
    loaded = resident("VmHWM")
    model.shares = False
    with tempfile.TemporaryDirectory() as work:
        tokens = Path(work) / "tokens"
        write_tokens(tokens, run["lengths"], run["answer"], model.causal.config.vocab_size)
        state = train(tokens, model, Path(work))
    cuda = machine.device.type == "cuda"
    peak = peak_memory(machine.device) if cuda else resident("VmHWM")
    numbers = {
        "baselineBytes": outside_allocator(machine.device) if cuda else baseline,
        "loadedBytes": loaded,
        "peakBytes": peak,
        "seconds": round(state.seconds, 2),
        "tokens": state.tokens,
        "trainable": model.trainable_parameters,
        "parameters": model.total_parameters,
        "device": machine.words,
    }
    print(json.dumps(numbers))


def write_tokens(folder: Path, lengths: list[int], answer: float, vocabulary: int) -> None:
    """Documents of random tokens; the last share ``answer`` of each is trained."""
    chance = np.random.default_rng(7)
    with TokenWriter(folder) as writer:
        for length in lengths:
            asked = round(length * (1 - answer))
            writer.append(chance.integers(0, vocabulary, length).tolist(), [0] * asked + [1] * (length - asked))


def train(tokens: Path, model: Any, work: Path) -> TrainingState:
    """One epoch over the documents, in steps of two packs; the second pack already has the heap that it needs."""
    store = TokenStore(tokens)
    capacity = PACK_TOKENS[model.machine.device.type]
    training = Training(epochs=1, tokens_per_step=2 * capacity)
    schedule = Schedule(store.lengths, training.tokens_per_step, 1, 0, training.seed)
    state = TrainingState(input_digest="bench", capacity=capacity)
    checkpoints = Checkpoints(work / "checkpoints", keep=1)
    objective = Supervised(model, Examples(store))
    return Loop(model, objective, schedule, training, checkpoints, 1e9, Board(), threading.Event(), state).run()


def resident(field: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (the most so far) of this process."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) * 1024


if __name__ == "__main__":
    {"make": make, "measure": measure}[sys.argv[1]](Path(sys.argv[2]), json.loads(sys.argv[3]))
