"""Models that cannot be served, on the real engine: the pod ends with one, and its last words are the engine's own."""

import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from server_process import START_SECONDS, ServerProcess

from tuneloop_demo.tiny_model import write_tiny_model

pytestmark = pytest.mark.timeout(600)

LENGTH = 1_000_000
START = Path(__file__).parent.parent / "support" / "start_engine.py"


def change_config(model: Path, fields: dict[str, Any]) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **fields}))


def narrow_weights(model: Path) -> None:
    """One projection has half of its rows: a folder that was put together of two models."""
    file = model / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("mlp.down_proj.weight"))
    tensors[name] = np.ascontiguousarray(tensors[name][: len(tensors[name]) // 2])
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("engine", "change", "words"),
    [
        ({"maxModelLength": LENGTH}, {}, "max_model_len (1000000) is greater than the derived max_model_len"),
        (
            {},
            {"architectures": ["NobodysModel"], "model_type": "nobody"},
            "or ask for a server image with a later vLLM",
        ),
        (
            {"extraArgs": ["--max-num-seqs=many"]},
            {},
            "the engine refuses a flag: argument --max-num-seqs: invalid",
        ),
        (
            {"maxModelLength": LENGTH},
            {"max_position_embeddings": LENGTH, "num_hidden_layers": 4000},
            f"too small for one sequence of engine.maxModelLength {LENGTH}: raise spec.pod.resources.limits.memory",
        ),
        ({"maxModelLength": 256}, None, "could not load this model: AssertionError: assert self.data.shape == "),
    ],
    ids=[
        "too long",
        "unknown architecture",
        "a flag without sense",
        "no room for its KV cache",
        "weights of another shape",
    ],
)
def test_a_start_that_cannot_work_says_why_and_ends_with_one(
    tmp_path: Path, engine: dict[str, Any], change: dict[str, Any] | None, words: str
) -> None:
    model = write_tiny_model(tmp_path / "model")
    if change is None:
        narrow_weights(model)
    else:
        change_config(model, change)
    wrong = ServerProcess(tmp_path, model, **engine)
    wrong.start()
    with closing(wrong):
        assert wrong.process.wait(timeout=START_SECONDS) == 1
    said = re.split(r"^(?=[A-Z]+ .* \[tuneloop_server)", wrong.log.read_text(), flags=re.MULTILINE)[-1]
    assert said.startswith("ERROR")
    assert words in said


def test_a_cache_that_the_engine_itself_finds_too_small_is_told_in_its_words(tmp_path: Path) -> None:
    """As on a GPU, where it measures what is left: its process says how much a sequence needs; that is handed on."""
    model = write_tiny_model(tmp_path / "model")
    command = [sys.executable, str(START), str(model), str(1 << 17)]
    with tempfile.TemporaryDirectory(prefix="tl-") as temporary:
        environment = {**os.environ, "TMPDIR": temporary}
        options: dict[str, Any] = {"capture_output": True, "text": True, "env": environment}
        done = subprocess.run(command, timeout=START_SECONDS, check=False, **options)
    assert "the engine could not load this model: ValueError: To serve at least one request" in done.stdout, done
    assert "KV cache" in done.stdout
