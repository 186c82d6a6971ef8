"""One side of benchmarks/trainer.py, in the trainer's environment: prints its numbers as the last line, JSON.

ours: the trainer's loop with its defaults; its tokens are those of the rows, though a beginning that the rows of a pack
share is computed once. ours-unshared: the same without that. trl-docs: SFTTrainer as TRL's documentation sets LoRA up.
trl-best: with what helps it on this machine: float32 on CPUs without bfloat16, rows grouped by length.
"""

import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from tuneloop_core.api.finetunejob import Method, Training
from tuneloop_core.data.files import find_files
from tuneloop_core.data.rows import Format
from tuneloop_core.data.survey import read_rows
from tuneloop_trainer.batches import Schedule
from tuneloop_trainer.checkpoints import Checkpoints, TrainingState
from tuneloop_trainer.encode import load_encoder
from tuneloop_trainer.loop import PACK_TOKENS, Loop
from tuneloop_trainer.machine import Machine, peak_memory, prepare_machine
from tuneloop_trainer.model import load_model
from tuneloop_trainer.objectives import Supervised
from tuneloop_trainer.progress import Board
from tuneloop_trainer.tokens import Examples, TokenStore, TokenWriter

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16 FLOP/s by the vendor's data sheet
WARM_TOKENS = 1024
TOKENS_PER_STEP = 4096


def training_rows(dataset: Path) -> list[Any]:
    """The rows of the dataset's training files."""
    files = find_files(dataset)
    return [row for _, row in read_rows(files.train, Format.CHAT, has_template=True)]


def ours(model_path: Path, rows: list[Any], machine: Machine, folder: Path, shares: bool) -> dict[str, Any]:
    """Our loop: warm up on a few rows, then the rest timed by the loop itself."""
    encoder = load_encoder(model_path)
    for name, part in (("warm", rows[:WARM]), ("timed", rows[WARM:])):
        with TokenWriter(folder / name) as writer:
            for row in part:
                encoded = encoder.encode(row)
                writer.append(encoded.ids, encoded.trained)
    model = load_model(model_path, machine, Method(), seed=7)
    model.shares = shares
    loop_over(folder / "warm", model, machine, folder)
    state = loop_over(folder / "timed", model, machine, folder)
    return {
        "tokens": state.tokens,
        "seconds": state.seconds,
        "settings": f"{dtype_name(machine.dtype)}, packed{', shared' * shares}",
    }


def loop_over(tokens: Path, model: Any, machine: Machine, folder: Path) -> TrainingState:
    """One epoch over a token store."""
    store = TokenStore(tokens)
    training = Training(epochs=1, tokens_per_step=TOKENS_PER_STEP)
    state = TrainingState(input_digest="bench", capacity=PACK_TOKENS[machine.device.type])
    schedule = Schedule(store.lengths, TOKENS_PER_STEP, 1, 0, 7)
    checkpoints = Checkpoints(folder / f"checkpoints-{tokens.name}", keep=1)
    objective = Supervised(model, Examples(store))
    return Loop(model, objective, schedule, training, checkpoints, 1e9, Board(), threading.Event(), state).run()


def trl(model_path: Path, rows: list[Any], machine: Machine, folder: Path, best: bool) -> dict[str, Any]:
    """SFTTrainer on the same rows, one epoch; time from the first step's end after the warm-up rows."""
    from datasets import Dataset  # noqa: PLC0415 - this side only
    from peft import LoraConfig  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: PLC0415
    from trl import SFTConfig, SFTTrainer  # noqa: PLC0415

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Counts real tokens and seconds after the first step: steps are not equally long, least of all the last."""

        def __init__(self) -> None:
            self.started = self.seconds = 0.0
            self.first = self.tokens = 0

        def on_step_end(self, _args: Any, state: Any, _control: Any, **_kwargs: Any) -> None:
            """Start after the first step, stop at the last."""
            self.started = self.started or time.monotonic()
            self.seconds = time.monotonic() - self.started
            self.first = self.first or int(state.num_input_tokens_seen)
            self.tokens = int(state.num_input_tokens_seen) - self.first

    dtype = machine.dtype if best else torch.bfloat16
    extra: dict[str, Any] = {"train_sampling_strategy": "group_by_length"} if best else {}
    batch = 8
    arguments = SFTConfig(
        output_dir=str(folder), num_train_epochs=1, per_device_train_batch_size=batch, bf16=dtype is torch.bfloat16,
        gradient_accumulation_steps=max(1, TOKENS_PER_STEP // (batch * 75)), learning_rate=2e-4, save_strategy="no",
        report_to="none", include_num_input_tokens_seen="non_padding", gradient_checkpointing=False,
        use_cpu=machine.device.type == "cpu", **extra,
    )  # fmt: skip
    clock = Clock()
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype),
        args=arguments,
        train_dataset=Dataset.from_list([row.as_json() for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(model_path),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[clock],
    )
    trainer.train()
    packing = "grouped by length" if best else "padded"
    return {
        "tokens": clock.tokens,
        "seconds": clock.seconds,
        "settings": f"{dtype_name(dtype)}, {packing}, batch {batch}",
    }


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` of ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def peak_flops(machine: Machine) -> float:
    """The device's peak: by data sheet, or on CPU the best of some matrix products."""
    if machine.device.type == "cuda":
        name = torch.cuda.get_device_name()
        return next((peak for key, peak in PEAK.items() if key in name), float("nan"))
    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = float("inf")
    for _ in range(12):
        started = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - started)
    return 2 * 1024**3 / best


def flops_per_token(model_path: Path, mean_length: float) -> float:
    """4 N + 6 s d L, N without the embedding unless it is the head too."""
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415 - slow to import

    config = AutoConfig.from_pretrained(model_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed_tokens" not in n)
    head = config.vocab_size * config.hidden_size if config.tie_word_embeddings else 0
    return float(4 * (matrices + head) + 6 * mean_length * config.hidden_size * config.num_hidden_layers)


WARM = 16


def main() -> None:
    """Run one side."""
    side, model_path, dataset, tokens = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    machine = prepare_machine(accelerators=int(torch.cuda.is_available()))
    encoder = load_encoder(model_path)
    rows, lengths, seen = [], [], 0
    for row in training_rows(dataset):
        if seen >= tokens + WARM_TOKENS:
            break
        lengths.append(len(encoder.encode(row).ids))
        seen += lengths[-1]
        rows.append(row)
    with tempfile.TemporaryDirectory() as folder:
        if side.startswith("ours"):
            found = ours(model_path, rows, machine, Path(folder), shares=side == "ours")
        else:
            found = trl(model_path, rows, machine, Path(folder), best=side == "trl-best")
    rate = found["tokens"] / found["seconds"]
    flops = flops_per_token(model_path, sum(lengths) / len(lengths))
    numbers = {
        "tokensPerSecond": round(rate, 2),
        "mfu": round(rate * flops / peak_flops(machine), 4),
        "peakMemoryBytes": peak_memory(machine.device),
        "device": machine.words,
    }
    print(json.dumps({**found, **numbers}))


if __name__ == "__main__":
    main()
