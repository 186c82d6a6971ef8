"""Models that do not generate, on the real engine: a classifier as train publishes it, and an embedding model."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from server_fixtures import adapter_list, write_adapter
from server_process import START_SECONDS, ServerProcess

from tuneloop_demo.tiny_model import HIDDEN, write_tiny_model

pytestmark = pytest.mark.timeout(600)

LABELS = ("billing", "network", "storage")


def write_classifier(folder: Path) -> Path:
    """The tiny model as transformers saves a LlamaForSequenceClassification: with a head for classes."""
    write_tiny_model(folder)
    file, random = folder / "model.safetensors", np.random.default_rng(3)
    score = random.standard_normal((len(LABELS), HIDDEN)).astype(np.float32)
    save_file(load_file(file) | {"score.weight": score}, file, metadata={"format": "pt"})
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: number for number, name in enumerate(LABELS)}}
    return change_config(folder, {"architectures": ["LlamaForSequenceClassification"], **names})


def change_config(folder: Path, fields: dict[str, Any]) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


@contextmanager
def served(folder: Path, model: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(folder, model, maxModelLength=256)
    server.start()
    try:
        server.wait("health", lambda: server.health() == 200, START_SECONDS)
        yield server
    finally:
        server.close()


def test_a_published_classifier_gives_classes(tmp_path: Path) -> None:
    with served(tmp_path, write_classifier(tmp_path / "model")) as server:
        texts = ["The disk is full.", "I was charged twice."]
        answer = server.gateway.post("/classify", json={"model": "tiny", "input": texts})
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert [item["label"] in LABELS for item in found["data"]] == [True, True]
        assert all(abs(sum(item["probs"]) - 1) < 0.01 for item in found["data"])
        assert found["usage"]["prompt_tokens"] > 0
        wrong = server.gateway.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
        assert (wrong.status_code, "gives classes" in wrong.json()["error"]["message"]) == (400, True)
        adapter = write_adapter(server.artifacts, "red", 1)
        server.list_adapters(adapter_list(adapter))
        server.wait("the adapter to be refused", lambda: server.states() == {adapter.engine_name: "Failed"})
        assert "publish it merged" in server.messages()[adapter.engine_name]


def test_an_encoder_makes_embeddings(tmp_path: Path) -> None:
    model = change_config(write_tiny_model(tmp_path / "model"), {"architectures": ["LlamaModel"]})
    with served(tmp_path, model) as server:
        answer = server.gateway.post("/v1/embeddings", json={"model": "tiny", "input": ["one text", "another"]})
        assert answer.status_code == 200, answer.text
        vectors = [item["embedding"] for item in answer.json()["data"]]
        assert [len(vector) for vector in vectors] == [HIDDEN, HIDDEN]
        assert vectors[0] != vectors[1]
        assert answer.json()["usage"]["prompt_tokens"] > 0
        long = server.gateway.post("/v1/embeddings", json={"model": "tiny", "input": "word " * 2000})
        assert long.status_code == 400
        assert "256" in long.json()["error"]["message"]
