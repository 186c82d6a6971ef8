"""server.json to settings, memory, arguments and environment."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tuneloop_core.api.engine import EngineSettings
from tuneloop_core.serving import ServerConfig
from tuneloop_server import environment
from tuneloop_server.arguments import engine_arguments
from tuneloop_server.errors import StartError
from tuneloop_server.limits import Limits
from tuneloop_server.modelfolder import ModelFacts, read_model
from tuneloop_server.settings import read_settings
from tuneloop_server.sizing import BLOCK_TOKENS, FALLBACK_BYTES, GIB, RESERVE_BYTES, SEQUENCES, kv_cache_bytes

SMOLLM2 = ModelFacts(("LlamaForCausalLM",), 576, 30, 3, 64, 2, 269_000_000)


def write(folder: Path, **change: Any) -> dict[str, str]:
    body = {"servedName": "m", "engine": {}, **change}
    (folder / "server.json").write_text(json.dumps(body))
    return {"TUNELOOP_SERVER_CONFIG": str(folder / "server.json")}


def test_settings(tmp_path: Path) -> None:
    found = read_settings({**write(tmp_path, engine={"maxModelLength": 512}), "TUNELOOP_SERVER_GRACE_SECONDS": "55"})
    assert (found.server.served_name, found.engine.max_model_length, found.engine.lora.max_rank) == ("m", 512, 32)
    assert (found.folder, found.artifacts, found.port, found.grace_seconds) == (
        tmp_path,
        Path("/artifacts"),
        8000,
        55.0,
    )


def test_a_file_of_a_later_operator_is_read(tmp_path: Path) -> None:
    assert read_settings(write(tmp_path, ofALaterRelease={"a": 1})).server.served_name == "m"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"engine": {"maxModelLength": "long"}}, "engine.maxModelLength"),
        ({"engine": {"type": "TGI"}}, "found 'TGI'"),
        ({"engine": {"unknown": 1}}, "engine.unknown"),
        ({"servedName": 7}, "servedName"),
    ],
)
def test_wrong_settings_name_the_field(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(StartError, match=words):
        read_settings(write(tmp_path, **change))


def test_a_missing_file_says_which(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"absent\.json.*TUNELOOP_SERVER_CONFIG"):
        read_settings({"TUNELOOP_SERVER_CONFIG": str(tmp_path / "absent.json")})


def test_a_wrong_number_in_the_environment(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="TUNELOOP_SERVER_GRACE_SECONDS must be a number, found 'soon'"):
        read_settings({**write(tmp_path), "TUNELOOP_SERVER_GRACE_SECONDS": "soon"})


def one_sequence(length: int) -> int:
    blocks = -(-length // BLOCK_TOKENS) + 1
    return blocks * BLOCK_TOKENS * SMOLLM2.kv_bytes_per_token()


def test_kv_bytes_per_token() -> None:
    assert SMOLLM2.kv_bytes_per_token() == 2 * 30 * 3 * 64 * 2 == 23040


@pytest.mark.parametrize(
    ("limit", "length", "expected"),
    [
        pytest.param(64 * GIB, 4096, SEQUENCES * one_sequence(4096), id="plenty: no more than is useful"),
        pytest.param(
            4 * GIB,
            16384,
            4 * GIB - SMOLLM2.weight_bytes - 8 * 32 * 16 * 576 * 30 * 2 - RESERVE_BYTES,
            id="tight: what the limit leaves",
        ),
    ],
)
def test_kv_cache(limit: int, length: int, expected: int) -> None:
    found = kv_cache_bytes(EngineSettings(max_model_length=length), SMOLLM2, Limits(2, limit))
    assert found == expected


def test_too_little_memory_says_how_much_is_missing() -> None:
    with pytest.raises(StartError, match=r"the memory limit of 2\.0 GiB is .* GiB too small .*maxModelLength 4096"):
        kv_cache_bytes(EngineSettings(), SMOLLM2, Limits(2, 2 * GIB))


def test_unknown_shapes_get_a_fixed_amount() -> None:
    unknown = ModelFacts(("Other",), 0, 0, 0, 0, 2, 1000)
    assert kv_cache_bytes(EngineSettings(), unknown, Limits(2, 64 * GIB)) == FALLBACK_BYTES


def model_folder(folder: Path, config: str, weights: bool = True) -> Path:
    (folder / "config.json").write_text(config)
    if weights:
        (folder / "model.safetensors").write_bytes(b"12345678")
    return folder


def test_model_facts(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
    }
    folder = model_folder(tmp_path, json.dumps({**config, "num_key_value_heads": 3, "dtype": "bfloat16"}))
    files = (str(folder / "model.safetensors"),)
    assert read_model(folder) == ModelFacts(("LlamaForCausalLM",), 576, 30, 3, 64, 2, 8, files=files)


def test_model_facts_of_a_nested_config(tmp_path: Path) -> None:
    text = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "head_dim": 32}
    folder = model_folder(tmp_path, json.dumps({"architectures": ["X"], "text_config": text}))
    files = (str(folder / "model.safetensors"),)
    assert read_model(folder) == ModelFacts(("X",), 64, 2, 4, 32, 2, 8, multimodal=True, files=files)


@pytest.mark.parametrize(
    ("config", "weights", "words"),
    [("[]", True, "no JSON object"), ("{", True, "not JSON"), ("{}", False, "only safetensors")],
)
def test_model_folders_that_cannot_be_served(tmp_path: Path, config: str, weights: bool, words: str) -> None:
    with pytest.raises(StartError, match=words):
        read_model(model_folder(tmp_path, config, weights))


def test_an_absent_model(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"config\.json is not there"):
        read_model(tmp_path)


def arguments(accelerators: int = 0, kv_bytes: int | None = 1000, **engine: Any) -> list[str]:
    config = ServerConfig(served_name="m", engine={}, accelerators=accelerators)
    return engine_arguments(config, EngineSettings.model_validate(engine), SMOLLM2, kv_bytes)


def test_arguments_on_cpu() -> None:
    found = arguments(maxModelLength=512, dtype="BFloat16", lora={"maxRank": 16, "maxActive": 4, "maxCached": 9})
    assert found == [
        "--model=/model",
        "--served-model-name=m",
        "--max-model-len=512",
        "--dtype=bfloat16",
        "--distributed-executor-backend=uni",
        "--tensor-parallel-size=1",
        "--load-format=safetensors",
        "--allowed-media-domains=media-urls-are-refused.invalid",
        "--disable-fastapi-docs",
        "--disable-uvicorn-access-log",
        "--enable-lora",
        "--max-loras=4",
        "--max-cpu-loras=9",
        "--max-lora-rank=16",
        "--kv-cache-memory-bytes=1000",
    ]


def test_arguments_on_two_gpus() -> None:
    found = arguments(accelerators=2, kv_bytes=None, quantization="FP8", extraArgs=["--max-num-seqs=64"])
    assert {"--tensor-parallel-size=2", "--distributed-executor-backend=mp", "--quantization=fp8"} <= set(found)
    assert found[-1] == "--max-num-seqs=64"
    assert not any(item.startswith("--kv-cache-memory-bytes") for item in found)


def test_a_rank_between_the_engine_s_sizes_gets_the_next_one() -> None:
    assert "--max-lora-rank=32" in arguments(lora={"maxRank": 17})


@pytest.mark.parametrize(
    "flag",
    [
        "--trust-remote-code",
        "--api-key=x",
        "--middleware=os.system",
        "--host=0.0.0.0",
        "--max_num_seqs=4",
        "--max-num-seqs 4",
        "--seed=1\n--api-key=x",
        "--reasoning-parser=/tmp/x.py",
        "--config=/etc/x.yaml",
        "max-num-seqs=4",
    ],
)
def test_flags_that_open_holes_are_refused(flag: str) -> None:
    with pytest.raises(StartError, match=r"engine\.extraArgs holds .*allowed are"):
        arguments(extraArgs=[flag])


def test_environment_on_cpu(tmp_path: Path) -> None:
    found = environment.engine_environment(Limits(1.5, GIB), 0, "/tmp/h", tmp_path, {})
    assert {name: found[name] for name in ("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND", "HF_HUB_OFFLINE")} == {
        "OMP_NUM_THREADS": "2",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
    }
    assert found["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert found["VLLM_CACHE_ROOT"] == "/tmp/h/vllm"


@pytest.mark.parametrize(("asked", "threads"), [("1", "1"), ("2", "2"), ("9", "2"), ("0", "2"), ("many", "2")])
def test_a_pod_may_ask_for_fewer_threads_than_its_quota(tmp_path: Path, asked: str, threads: str) -> None:
    found = environment.engine_environment(Limits(2, GIB), 0, "/tmp/h", tmp_path, {"OMP_NUM_THREADS": asked})
    assert (found["OMP_NUM_THREADS"], found["MKL_NUM_THREADS"]) == (threads, threads)


def test_environment_on_gpu_leaves_threads_alone(tmp_path: Path) -> None:
    found = environment.engine_environment(Limits(8, GIB), 1, "/tmp/h", tmp_path, {})
    assert "OMP_NUM_THREADS" not in found
    assert found["VLLM_NO_USAGE_STATS"] == "1"


def test_clear_removes_what_opens_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vllm", raising=False)  # the engine's tests may have run before
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    monkeypatch.setenv("VLLM_API_KEY", "x")
    environment.clear()
    assert not {"VLLM_SERVER_DEV_MODE", "VLLM_API_KEY"} & set(environment.os.environ)
