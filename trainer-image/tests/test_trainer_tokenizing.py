"""Tokens by workers are those of one process; kept tokens are those of the first check, and never wrong ones."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pods
import pytest
from tuneloop_core.stages import CheckInput, Stage

from tuneloop_trainer import check, token_cache, tokenizing
from tuneloop_trainer.token_cache import cache_key
from tuneloop_trainer.tokenizing import worker_count

GIB = 2**30


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def checked(pod: pods.Pod, **training: Any) -> dict[str, Any]:
    given = pod.check_input({**pods.TRAINING, **training}) | {"datasetDigest": "sha256:" + "0" * 64}
    return pod.succeed(Stage.CHECK, given)


@pytest.mark.parametrize(
    ("rows", "cores", "memory", "workers"),
    [
        (4_999, 8, 0, 0),  # a worker would start longer than it works
        (5_000, 1, 0, 0),
        (5_000, 2, 0, 2),
        (5_000, 64, 0, 16),
        (5_000, 64, 2 * GIB, 3),
        (5_000, 64, GIB, 0),
    ],
)
def test_workers_fit_the_pod(rows: int, cores: int, memory: int, workers: int) -> None:
    assert worker_count(rows, cores, memory) == workers


def test_workers_write_what_one_process_writes(pod: pods.Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "BATCH", 5)
    alone, written = checked(pod), files(pod.paths.data)
    shutil.rmtree(pod.paths.work)
    monkeypatch.setattr(check, "allowed_workers", lambda _rows: 2)
    assert checked(pod) == alone
    assert files(pod.paths.data) == written


def test_the_next_job_on_the_same_data_takes_the_tokens(pod: pods.Pod) -> None:
    pod.paths.tokens.mkdir()
    first, written = checked(pod), files(pod.paths.data)
    report = (pod.paths.work / check.REPORT).read_bytes()
    shutil.rmtree(pod.paths.work)
    shutil.rmtree(pod.paths.dataset)  # it is not even looked at
    assert checked(pod) == first
    assert files(pod.paths.data) == written
    assert json.loads((pod.paths.work / check.REPORT).read_bytes()) == json.loads(report)


def test_other_settings_or_a_damaged_entry_are_checked_anew(pod: pods.Pod) -> None:
    pod.paths.tokens.mkdir()
    first = checked(pod)
    checked(pod, seed=8)
    entries = list(pod.paths.tokens.iterdir())
    assert len(entries) == 2
    for entry in entries:
        (entry / "data/train/trained.u8").write_bytes(b"")
    (pod.paths.work / "check/result.json").unlink()
    assert checked(pod) == first
    assert len(list(pod.paths.tokens.iterdir())) == 2


# ---- the key -------------------------------------------------------------------------------------------------------

DIGEST = "sha256:" + "0" * 64
DATASET = {"uri": "hf://datasets/org/rows", "columns": {"prompt": "q", "completion": "a"}}
IRRELEVANT = frozenset({"errors", "files", "paths", "cgroup", "lmeval.scores"})
"""Modules that check imports and that change nothing of what an entry holds."""


def key(model: Path, dataset: dict[str, Any] | None = None, digest: str = DIGEST, **given: Any) -> str:
    blocks = {"method": {}, "training": pods.TRAINING, **given}
    return cache_key(CheckInput(owner="o", dataset=DATASET | (dataset or {}), dataset_digest=digest, **blocks), model)


@pytest.mark.parametrize(
    ("dataset", "given"),
    [
        ({"uri": "s3://bucket/rows/", "endpoint": "http://minio:9000", "credentialsSecret": "s3"}, {}),
        ({"digest": DIGEST}, {}),
        ({"validation": {"fraction": "0.10"}}, {}),
        ({"validation": {}}, {}),
        ({"files": []}, {}),
        ({"columns": {"completion": "a", "prompt": "q", "text": ""}}, {}),
        ({}, {"training": {**pods.TRAINING, "epochs": 9, "learningRate": "1e-3", "tokensPerStep": 4096}}),
        ({}, {"method": {"adapter": "DoRA", "lora": {"rank": 4}}}),
        ({}, {"evaluation": {"gates": [{"metric": "evalLoss", "max": "2"}]}}),
    ],
)
def test_what_changes_nothing_has_the_same_key(tiny: Path, dataset: dict[str, Any], given: dict[str, Any]) -> None:
    assert key(tiny, dataset, **given) == key(tiny)


@pytest.mark.parametrize(
    ("dataset", "given"),
    [
        ({}, {"digest": "sha256:" + "1" * 64}),
        ({"format": "Completion"}, {}),
        ({"columns": {"prompt": "question", "completion": "a"}}, {}),
        ({"files": ["*.jsonl"]}, {}),
        ({"validation": {"fraction": "0.2"}}, {}),
        ({"validation": {"files": ["held-out/*"]}}, {}),
        ({}, {"training": {**pods.TRAINING, "seed": 8}}),
        ({}, {"training": {**pods.TRAINING, "maxSequenceLength": 128}}),
        ({}, {"training": {**pods.TRAINING, "packing": False}}),
        ({}, {"method": {"objective": "DPO"}, "training": {**pods.TRAINING, "packing": False}}),
        ({}, {"method": {"task": "SequenceClassification"}}),
    ],
)
def test_what_changes_rows_or_tokens_has_another_key(
    tiny: Path, dataset: dict[str, Any], given: dict[str, Any]
) -> None:
    keys = [key(tiny, dataset, **given), key(tiny)]
    if given.get("method", {}).get("objective"):  # packing alone is told apart above
        keys.append(key(tiny, **{**given, "method": {}}))
    assert len(set(keys)) == len(keys)


def test_held_out_files_are_told_by_the_digest_alone(tiny: Path) -> None:
    """Where they came from and what was asked for is not data: each side's folder is, and it is in the digest."""
    files, uri = {"validation": {"files": ["a/*"]}}, {"validation": {"uri": "pvc://other/rows"}}
    assert key(tiny, files) == key(tiny, uri)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_tokenizer_is_all_of_its_files(tiny: Path, tmp_path: Path, name: str) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    assert key(model) == key(tiny)
    (model / name).write_bytes((model / name).read_bytes() + b"\n")
    assert key(model) != key(tiny)


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "additional_chat_templates/a.jinja", "tekken.json", "bpe.codes"]
)
def test_a_file_more_is_another_tokenizer(tiny: Path, tmp_path: Path, name: str) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("{}")
    assert key(model) != key(tiny)


def test_weights_and_words_about_a_model_are_no_tokenizer(tiny: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny, tmp_path / "model")
    for name in ("model.safetensors", "generation_config.json", "LICENSE", "README.md", "DIGEST"):
        (model / name).write_bytes(b"other")
    assert key(model) == key(tiny)


def test_a_key_is_the_same_in_every_process(tiny: Path) -> None:
    """Nothing in it hangs on the order of a set or on an address."""
    given = CheckInput(owner="o", dataset=DATASET, dataset_digest=DIGEST, method={}, training=pods.TRAINING)
    code = (
        "import sys; from pathlib import Path; from tuneloop_core.stages import CheckInput\n"
        "from tuneloop_trainer.token_cache import cache_key\n"
        "print(cache_key(CheckInput.model_validate_json(sys.argv[1]), Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, given.model_dump_json(by_alias=True), str(tiny)]
    found = {
        subprocess.run(command, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {key(tiny)}


def test_all_code_that_decides_is_in_the_key() -> None:
    """Modules of this package that check and what it imports import."""
    package = Path(token_cache.__file__).parent
    imported = {name for module in token_cache.CODE for name in imports(package / f"{module}.py")}
    assert imported <= {*token_cache.CODE, *IRRELEVANT}


def imports(path: Path) -> set[str]:
    found = [node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return {name.removeprefix("tuneloop_trainer.") for name in found if name.startswith("tuneloop_trainer.")}
