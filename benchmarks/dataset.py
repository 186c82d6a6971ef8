"""The dataset check on a large file: resident memory over what was read, and MiB a second.

    make bench-dataset                                        # JSON Lines: rows of 30 and 300 MiB, the stage on 10
    make bench-dataset ARGS="--kind parquet --megabytes 1000"
    make bench-dataset ARGS="--rates 20 --model FOLDER"       # only rows/s and tokens/s, before and now

``rows`` is the first pass (parsed, judged, compared), which is where memory could follow the size; ``check`` the
whole stage as its pod does it, tokens and files included, with a tiny model's tokenizer. Each run is a process of its
own in the trainer's locked environment. ``--rates`` compares the ways from records to tokens: row by row with every
span proven by further renderings, as it was; batched, one rendering a row; batched by as many workers as there are
CPUs, their start included. The tokenizer is the tiny model's unless a folder is named.

What may grow is the table of digests by which rows are compared: 8 bytes a
slot and two to four slots a row, up to a ceiling of 32 MiB at two million rows (``tuneloop_core.data.seen``).

On 2 cores shared with other work, 2026-11-24: 1,236,381 rows of 995 MiB at 5.1 MiB/s, memory from 91 to at most 141
MiB (97 after 200 MiB, 109 after 800, 94 at the end); the whole stage, with its tokenizer and worker, 487 MiB on 5 MiB
and 481 on 33.

``--rates 1``, SmolLM2's tokenizer, the same 2 cores with fifteen processes waiting: 39 rows/s (10,750 tokens/s)
row by row, 105 (28,900) in batches. The workers' start is most of so small a file's time (56 rows/s, 15,500).
"""

import argparse
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import _children

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("TUNELOOP_CACHE") or Path.home() / ".cache" / "tuneloop")
KINDS = ("jsonl", "json", "csv", "parquet")


def run(what: str, kind: str, megabytes: int, *model: str) -> Any:
    """One size; its numbers."""
    uv = [str(ROOT / "scripts/uv"), "run", "--quiet", "--frozen", "--project", str(ROOT / "trainer-image")]
    command = [*uv, "python", str(ROOT / "benchmarks/_dataset_side.py"), what, kind, str(megabytes), *model]
    environment = {
        **os.environ,
        "UV_PROJECT_ENVIRONMENT": os.environ.get("UV_PROJECT_ENVIRONMENT") or str(CACHE / "trainer-venv"),
        "HF_HUB_OFFLINE": "1",
    }
    environment.pop("VIRTUAL_ENV", None)
    done = _children.run(command, env=environment, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{what} of {megabytes} MiB of {kind} failed with exit code {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def rates(results: list[dict[str, Any]]) -> str:
    """The ways from records to tokens side by side; the first is the measure."""
    lines = ["from records to tokens       rows    tokens  seconds   rows/s   tokens/s  against before"]
    for each in results:
        seconds, ratio = each["seconds"], results[0]["seconds"] / each["seconds"]
        lines.append(
            f"{each['way']:24} {each['rows']:8} {each['tokens']:9} {seconds:8.1f} {each['rows'] / seconds:8.0f} "
            f"{each['tokens'] / seconds:10.0f} {ratio:14.2f}x"
        )
    return "\n".join(lines)


def table(results: list[dict[str, Any]]) -> str:
    """The runs side by side, then the largest one over what it read."""
    lines = ["what   kind       MiB     rows  seconds  MiB/s  memory before    peak  grew by"]
    for each in results:
        grew = each["peak_mib"] - each["before_mib"]
        lines.append(
            f"{each['what']:6} {each['kind']:8}{each['mib']:6.0f} {each['rows']:8} {each['seconds']:8.1f} "
            f"{each['mib'] / each['seconds']:6.1f} {each['before_mib']:10.0f} MiB {each['peak_mib']:7.0f} {grew:8.1f}"
        )
    largest = max(results, key=lambda each: float(each["mib"]))
    lines += ["", f"{largest['what']} of {largest['kind']}, {largest['mib']:.0f} MiB:", "MiB read   MiB resident"]
    lines += [f"{read:8.0f} {held:14.1f}" for read, held in largest["samples"]]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="bench-dataset", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kind", choices=KINDS, default="jsonl")
    parser.add_argument("--megabytes", type=int, default=300, help="size of the file; others have a tenth, a thirtieth")
    parser.add_argument("--rates", type=int, default=0, metavar="MEGABYTES", help="compare the ways to tokenize only")
    parser.add_argument("--model", default="", help="folder with a tokenizer, for --rates")
    options = parser.parse_args()
    _children.end_in_order()
    if options.rates:
        compared = run("rates", "jsonl", options.rates, *([options.model] if options.model else []))
        print(rates(compared))
        _record("dataset-rates", {"ways": compared, "model": Path(options.model).name or "tiny"})
        return
    sizes = (("rows", options.megabytes // 10), ("rows", options.megabytes), ("check", options.megabytes // 30))
    results = [run(what, options.kind, max(1, size)) for what, size in sizes]
    print(table(results))
    _record("dataset", {"runs": results})


def _record(name: str, found: dict[str, Any]) -> None:
    record = {"date": datetime.now(UTC).date().isoformat(), "cores": os.cpu_count(), **found}
    (ROOT / f"benchmarks/results/{name}.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
