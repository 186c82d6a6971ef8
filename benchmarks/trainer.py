"""Trainer against TRL's SFTTrainer: real tokens per second, peak memory and MFU, on the same rows, model and machine.

    make bench-trainer                      # SmolLM2-135M-Instruct, generated rows of 40 to 130 tokens
    make bench-trainer ARGS="--model DIR --dataset DIR --tokens 20000"

Each side is a process of its own in the trainer's locked environment, one after the other. A row of the table is the
best of ``--rounds`` runs, so that a busy machine disturbs less. Padding is not counted as tokens.
MFU: model FLOPs are (4 N + 6 s d L) a token (N parameters of the matrices, s the mean length, d the hidden size, L the
layers; LoRA needs no weight gradients), over the peak that is given or, on CPU, measured with a matrix product.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _children import end_in_order, run

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("TUNELOOP_CACHE") or Path.home() / ".cache" / "tuneloop")
SIDES = ("ours", "ours-unshared", "trl-docs", "trl-best")
WORDS = (ROOT / "docs/contracts.md").read_text().split()


def generated_rows(folder: Path, count: int) -> Path:
    """Chat rows of real words with the lengths of the demo's: short questions, answers of one or two sentences."""
    chance = random.Random(7)
    lines = []
    for number in range(count):
        question = f"What is item {number}? " + " ".join(chance.choices(WORDS, k=chance.randint(2, 8)))
        answer = " ".join(chance.choices(WORDS, k=chance.randint(6, 30)))
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": turns}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def run_side(side: str, model: Path, dataset: Path, tokens: int) -> dict[str, Any]:
    """One run of one side in the trainer's environment; its numbers."""
    uv = [str(ROOT / "scripts/uv"), "run", "--quiet", "--frozen", "--project", str(ROOT / "trainer-image")]
    command = [*uv, "--group", "bench", "python", str(ROOT / "benchmarks/_trainer_side.py")]
    arguments = [side, str(model), str(dataset), str(tokens)]
    environment = {**os.environ, "UV_PROJECT_ENVIRONMENT": str(CACHE / "trainer-venv"), "HF_HUB_OFFLINE": "1"}
    environment.pop("VIRTUAL_ENV", None)
    done = run([*command, *arguments], env=environment, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{side} failed with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def default_model() -> Path:
    """The model that the demo prepared; says what to do when there is none."""
    found = sorted((CACHE / "models").glob("SmolLM2-135M-Instruct*"))
    if not found:
        sys.exit("no model: run `make demo` once, or name one with --model DIR (config, tokenizer, safetensors)")
    return found[-1]


def table(results: dict[str, dict[str, Any]]) -> str:
    """The numbers side by side."""
    lines = ["| side | real tokens/s | times TRL (docs) | MFU | peak memory | settings |", "|---|---|---|---|---|---|"]
    reference = results.get("trl-docs", {}).get("tokensPerSecond")
    for side, found in results.items():
        ratio = f"{found['tokensPerSecond'] / reference:.2f}" if reference else "-"
        memory = f"{found['peakMemoryBytes'] / 2**30:.2f} GiB"
        shown = f"{found['tokensPerSecond']:.1f} | {ratio} | {found['mfu']:.1%} | {memory} | {found['settings']}"
        lines.append(f"| {side} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    """Run the sides, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dataset", type=Path, help="folder with train.jsonl of chat rows")
    parser.add_argument("--tokens", type=int, default=8192, help="real tokens a run trains on")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    options = parser.parse_args()
    end_in_order()
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = options.dataset or generated_rows(Path(folder), count=options.tokens // 50)
        for _ in range(options.rounds):
            for side in options.sides:
                found = run_side(side, options.model or default_model(), dataset, options.tokens)
                print(f"{side}: {found['tokensPerSecond']:.1f} tokens/s, load {os.getloadavg()[0]:.1f}", flush=True)
                best = results.get(side)
                results[side] = found if best is None or found["tokensPerSecond"] > best["tokensPerSecond"] else best
    print(table(results))
    target = ROOT / "benchmarks/results/trainer.json"
    target.parent.mkdir(exist_ok=True)
    document = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "tokens": options.tokens, "sides": results}
    target.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
