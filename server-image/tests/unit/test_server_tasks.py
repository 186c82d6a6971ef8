"""What a model is for decides its flags, its paths and the words for a wrong one."""

from dataclasses import replace

import pytest

from tuneloop_core.api.engine import EngineSettings
from tuneloop_core.serving import ServerConfig
from tuneloop_server.arguments import engine_arguments
from tuneloop_server.guard import TABLE
from tuneloop_server.modelfolder import ModelFacts
from tuneloop_server.tasks import PATHS, Task, classes_to_import, misfit, task_of

LLAMA = ModelFacts(("LlamaForCausalLM",), 576, 30, 3, 64, 2, 269_000_000)


@pytest.mark.parametrize(
    ("architecture", "sentences", "task"),
    [
        ("LlamaForCausalLM", False, "generate"),
        ("Qwen2VLForConditionalGeneration", False, "generate"),
        ("NobodysArchitecture", False, "generate"),
        ("Qwen3ForCausalLM", True, "embed"),
        ("BertModel", False, "embed"),
        ("BertModel", True, "embed"),
        ("LlamaForSequenceClassification", False, "classify"),
        ("BertForTokenClassification", False, "classify"),
    ],
)
def test_task_of_a_model(architecture: str, sentences: bool, task: Task) -> None:
    assert task_of([architecture], sentence_transformer=sentences) == task


def arguments(model: ModelFacts, accelerators: int, **engine: object) -> list[str]:
    config = ServerConfig(served_name="m", engine={}, accelerators=accelerators)
    kv_bytes = None if accelerators else 1 << 30
    return engine_arguments(config, EngineSettings.model_validate(engine), model, kv_bytes)


def test_a_generator_takes_adapters_and_is_split_over_its_accelerators() -> None:
    found = arguments(LLAMA, 4)
    assert {"--enable-lora", "--tensor-parallel-size=4", "--distributed-executor-backend=mp"} <= set(found)
    assert not any(flag.startswith(("--runner", "--kv-cache-memory-bytes")) for flag in found)
    assert {"--tensor-parallel-size=1", "--distributed-executor-backend=uni"} <= set(arguments(LLAMA, 1))


@pytest.mark.parametrize(("name", "flag"), [("None", ""), ("FP8", "fp8"), ("AWQ", "awq"), ("GPTQ", "gptq")])
def test_quantization(name: str, flag: str) -> None:
    found = [each for each in arguments(LLAMA, 1, quantization=name) if each.startswith("--quantization")]
    assert found == ([f"--quantization={flag}"] if flag else [])


@pytest.mark.parametrize(
    ("architecture", "task", "accelerators", "flags"),
    [
        ("LlamaForSequenceClassification", "classify", 0, ["--runner=pooling", "--enforce-eager"]),
        ("LlamaForSequenceClassification", "classify", 1, ["--runner=pooling"]),
        ("BertModel", "embed", 0, ["--runner=pooling", "--enforce-eager"]),
        ("Qwen3ForCausalLM", "embed", 1, ["--runner=pooling", "--convert=embed"]),
    ],
)
def test_a_pooling_model_takes_no_adapters(architecture: str, task: Task, accelerators: int, flags: list[str]) -> None:
    found = arguments(replace(LLAMA, architectures=(architecture,), task=task), accelerators)
    assert not any("lora" in flag for flag in found)
    assert [flag for flag in found if flag.startswith(("--runner", "--convert", "--enforce-eager"))] == flags


def test_every_path_of_a_task_is_behind_the_guard() -> None:
    assert {("POST", path) for path in PATHS} <= set(TABLE)


@pytest.mark.parametrize(
    ("task", "path", "words"),
    [
        ("generate", "/v1/completions", ""),
        ("generate", "/v1/models", ""),
        ("generate", "/v1/embeddings", "generates text: ask /v1/chat/completions"),
        ("embed", "/v1/chat/completions", "makes embeddings: ask /v1/embeddings"),
        ("embed", "/v1/score", ""),
        ("classify", "/v1/embeddings", "gives classes: ask /v1/classify"),
        ("classify", "/classify", ""),
    ],
)
def test_a_path_of_another_task_is_refused_in_words(task: Task, path: str, words: str) -> None:
    assert words in misfit(task, path)
    assert bool(words) == bool(misfit(task, path))


def test_the_class_of_a_decoder_that_classifies_is_its_decoders() -> None:
    assert classes_to_import(["LlamaForSequenceClassification"]) == [
        "LlamaForSequenceClassification",
        "LlamaForCausalLM",
    ]
    assert classes_to_import(["LlamaForCausalLM"]) == ["LlamaForCausalLM"]
