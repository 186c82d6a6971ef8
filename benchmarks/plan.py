"""The plan's memory against what training really takes, for some small shapes: estimate, measured peak, their ratio.

    make bench-plan                                # shapes of 37 to 313 million parameters, on CPU; 10 minutes and more
    make bench-plan ARGS="--only smollm2-135m --rounds 2"

Models have random weights, which take as much as good ones. Each is trained by the trainer's own loop for one step of
two packs, in a process of its own in the trainer's locked environment; the measured peak is that process's (VmHWM).
Both are shown less what the imports alone take, so that the ratio is about what the formula says and not about Python.
On a machine with a GPU the trainer uses it, and the peak is what its allocator reserved and the context.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _children import end_in_order, run

from tuneloop_core.constants import PACK_TOKENS
from tuneloop_core.plan.config import read_shape
from tuneloop_core.plan.memory import FIXED_BYTES, FLOAT32, Load, estimate
from tuneloop_core.plan.parameters import total_parameters, trainable_parameters

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("TUNELOOP_CACHE") or Path.home() / ".cache" / "tuneloop")
LENGTH, ANSWER = 256, 0.5
KEYS = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
SHAPES: dict[str, dict[str, Any]] = {
    "llama-37m": dict(zip(KEYS, ("llama", 384, 1024, 8, 6, 32000), strict=True)) | {"num_key_value_heads": 2},
    "smollm2-135m": dict(zip(KEYS, ("llama", 576, 1536, 30, 9, 49152), strict=True))
    | {"num_key_value_heads": 3, "tie_word_embeddings": True},
    "pythia-160m": dict(zip(KEYS, ("gpt_neox", 768, 3072, 12, 12, 50304), strict=True)),
    "gemma3-195m": dict(zip(KEYS, ("gemma3_text", 640, 2048, 12, 4, 200000), strict=True))
    | {"num_key_value_heads": 1, "head_dim": 256, "tie_word_embeddings": True},
    "qwen2-255m": dict(zip(KEYS, ("qwen2", 896, 4864, 8, 14, 151936), strict=True))
    | {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3-313m": dict(zip(KEYS, ("qwen3", 1024, 3072, 16, 16, 60000), strict=True))
    | {"num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True},
}
# shape, adapter, recompute
CASES = [
    *((shape, "LoRA", False) for shape in SHAPES),
    ("smollm2-135m", "LoRA", True),
    ("llama-37m", "DoRA", False),
    ("llama-37m", "QLoRA", False),
    ("llama-37m", "None", False),
]


def in_trainer(*arguments: str) -> dict[str, Any]:
    """Run the other side in the trainer's environment; its numbers."""
    uv = [str(ROOT / "scripts/uv"), "run", "--quiet", "--frozen", "--project", str(ROOT / "trainer-image")]
    environment = {**os.environ, "UV_PROJECT_ENVIRONMENT": str(CACHE / "trainer-venv"), "HF_HUB_OFFLINE": "1"}
    environment.pop("VIRTUAL_ENV", None)
    command = [*uv, "python", str(ROOT / "benchmarks/_plan_side.py"), *arguments]
    done = run(command, env=environment, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{arguments[0]} failed with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure(config: dict[str, Any], adapter: str, recompute: bool, rounds: int) -> dict[str, Any]:
    """Make the model, train it, keep the round with the largest peak."""
    with tempfile.TemporaryDirectory() as folder:
        in_trainer("make", folder, json.dumps(config))
        pack = PACK_TOKENS["cpu"]
        run = {"adapter": adapter, "recompute": recompute, "lengths": [LENGTH] * (2 * pack // LENGTH), "answer": ANSWER}
        found = [in_trainer("measure", folder, json.dumps(run)) for _ in range(rounds)]
    return max(found, key=lambda each: int(each["peakBytes"]))


def compare(name: str, adapter: str, recompute: bool, rounds: int) -> dict[str, Any]:
    """One row: what the plan says and what was measured, bytes."""
    shape = read_shape(SHAPES[name])
    assert shape is not None
    measured = measure(SHAPES[name], adapter, recompute, rounds)
    device = "cuda" if "CPU" not in measured["device"] else "cpu"
    number = 2 if "bfloat16" in measured["device"] else FLOAT32
    kind: Any = "Full" if adapter == "None" else adapter
    pack = PACK_TOKENS[device]
    planned = estimate(shape, Load(device, number, pack, round(pack * ANSWER), adapter=kind, recompute=recompute))
    assert total_parameters(shape) == measured["parameters"], name
    assert trainable_parameters(shape, kind, 16, "all-linear") == measured["trainable"], name
    return {
        "shape": name,
        "adapter": adapter,
        "recompute": recompute,
        "parameters": measured["parameters"],
        "estimateBytes": planned.total - FIXED_BYTES[device],
        "measuredBytes": measured["peakBytes"] - measured["baselineBytes"],
        "wholeEstimateBytes": planned.total,
        "wholeMeasuredBytes": measured["peakBytes"],
        "device": measured["device"],
    }


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    estimated, measured = row["estimateBytes"] / 2**30, row["measuredBytes"] / 2**30
    whole = row["wholeEstimateBytes"] / row["wholeMeasuredBytes"]
    method = {"None": "all weights"}.get(row["adapter"], row["adapter"]) + ", recompute" * row["recompute"]
    sizes = f"{row['parameters'] / 1e6:.0f} M | {estimated:.2f} GiB | {measured:.2f} GiB"
    return f"| {row['shape']} | {method} | {sizes} | {estimated / measured:.2f} | {whole:.2f} |"


def main() -> None:
    """Measure each case; table and JSON grow with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SHAPES, help="shapes; all cases of them")
    parser.add_argument("--rounds", type=int, default=1, help="the largest peak of so many runs counts")
    options = parser.parse_args()
    end_in_order()
    print("| shape | method | parameters | estimate | measured | ratio | ratio with imports |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name, adapter, recompute in CASES:
        if not options.only or name in options.only:
            row = compare(name, adapter, recompute, options.rounds)
            print(line(row), flush=True)
            keep(row)


def keep(row: dict[str, Any]) -> None:
    """Put a row into the JSON in place of an older one of the same case, so that a part can be measured anew."""
    target = ROOT / "benchmarks/results/plan.json"
    target.parent.mkdir(exist_ok=True)
    rows = json.loads(target.read_text())["rows"] if target.exists() else []
    case = [row[key] for key in ("shape", "adapter", "recompute")]
    others = [known for known in rows if [known[key] for key in ("shape", "adapter", "recompute")] != case]
    dated = row | {"date": datetime.now(UTC).isoformat(timespec="seconds")}
    target.write_text(json.dumps({"rows": [*others, dated]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
