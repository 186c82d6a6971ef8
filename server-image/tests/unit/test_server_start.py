"""What makes a cold start short, and how it is told: phases, imports left out, the start anew."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tuneloop_server import enginelog
from tuneloop_server.imports import leave_out, read_ahead, uncollected
from tuneloop_server.phases import Phases, process_age, read_reported


def test_phases_are_in_order_and_do_not_overlap() -> None:
    phases = Phases(2.0)
    with phases.phase("engine"):
        pass
    phases.take_out("engine", "weights", 0.5)
    phases.finish()
    found = phases.seconds()
    assert list(found) == ["launch", "engine", "weights", "total"]
    assert (found["launch"], found["engine"], found["weights"]) == (2.0, 0.0, 0.5)
    assert found["total"] >= 2.0


def test_a_process_knows_its_age_across_exec() -> None:
    code = "import os,sys,time; time.sleep(0.3); os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    told = "from tuneloop_server.phases import process_age; print(process_age())"
    done = subprocess.run([sys.executable, "-c", code, told], check=True, capture_output=True, text=True)
    assert float(done.stdout) >= 0.3
    assert process_age() > 0


@pytest.mark.parametrize(
    ("line", "phase", "seconds"),
    [
        ("Loading weights took 0.77 seconds", "weights", 0.77),
        ("torch.compile took 12.34 s in total", "compile", 12.34),
    ],
)
def test_the_engines_log_tells_times(tmp_path: Path, line: str, phase: str, seconds: float) -> None:
    import logging  # noqa: PLC0415

    handler = enginelog.PhaseHandler(str(tmp_path))
    handler.emit(logging.LogRecord("vllm", logging.INFO, __file__, 1, line, None, None))
    handler.emit(logging.LogRecord("vllm", logging.INFO, __file__, 1, "something else", None, None))
    assert read_reported(tmp_path) == {phase: seconds}


def test_the_engines_own_reason_is_kept_and_its_consequences_are_not(tmp_path: Path) -> None:
    import logging  # noqa: PLC0415

    handler = enginelog.PhaseHandler(str(tmp_path))
    assert enginelog.read_failure(tmp_path) == ""
    for error in (KeyError("model.layers.0.mlp"), RuntimeError("later")):
        info = (type(error), error, None)
        handler.emit(logging.LogRecord("vllm", logging.ERROR, __file__, 1, "EngineCore failed to start.", None, info))
    assert enginelog.read_failure(tmp_path) == "KeyError: 'model.layers.0.mlp'"
    assert read_reported(tmp_path) == {}


def test_an_assertion_without_words_is_told_by_its_line(tmp_path: Path) -> None:
    import logging  # noqa: PLC0415

    def check(found: int) -> None:
        assert found == 1

    with pytest.raises(AssertionError) as caught:
        check(2)
    bare = AssertionError().with_traceback(caught.tb)
    info = (AssertionError, bare, None)
    handler = enginelog.PhaseHandler(str(tmp_path))
    handler.emit(logging.LogRecord("vllm", logging.ERROR, __file__, 1, "EngineCore failed to start.", None, info))
    assert "assert found == 1" in enginelog.read_failure(tmp_path)
    assert "in check)" in enginelog.read_failure(tmp_path)


@pytest.mark.parametrize(
    ("on_cpu", "multimodal", "gone", "kept"),
    [
        (False, False, {"ray", "opentelemetry", "torchvision"}, {"triton", "vllm.env_override"}),
        (False, True, {"ray", "opentelemetry"}, {"triton", "torchvision", "vllm.env_override"}),
    ],
)
def test_what_is_left_out(
    monkeypatch: pytest.MonkeyPatch, on_cpu: bool, multimodal: bool, gone: set[str], kept: set[str]
) -> None:
    monkeypatch.setattr(sys, "modules", {name: module for name, module in sys.modules.items() if name not in gone})
    leave_out(on_cpu=on_cpu, multimodal=multimodal)
    assert {name for name in gone if sys.modules.get(name, "there") is None} == gone
    assert not {name for name in kept if sys.modules.get(name, "there") is None}


def test_on_cpu_functions_marked_for_the_compiler_stay_as_written() -> None:
    code = """
from tuneloop_server.imports import leave_out
leave_out(on_cpu=True, multimodal=False)
import sys, torch
@torch.compile(dynamic=True)
def twice(x): return x * 2
assert twice(torch.ones(1)).item() == 2 and torch.compile(twice) is twice
assert "torch._inductor.lowering" not in sys.modules and sys.modules["triton"] is None
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_garbage_is_looked_for_within_and_again_after() -> None:
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.unfreeze()


def test_reading_ahead_never_fails(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"x")
    read_ahead([str(tmp_path / "there"), str(tmp_path / "not")])


def test_the_server_starts_anew_before_it_imports_much(tmp_path: Path) -> None:
    """With no config it ends in words; the environment that it started anew in is the engine's."""
    environment = {**os.environ, "TUNELOOP_SERVER_CONFIG": str(tmp_path / "none.json")}
    done = subprocess.run(
        [sys.executable, "-m", "tuneloop_server"], env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "none.json" in done.stderr


def test_a_refusal_names_our_setting_where_one_mends_it() -> None:
    words = (
        "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU has "
        "compute capability 7.5. You can use float16 instead by explicitly setting the `dtype` flag in CLI, for "
        "example: --dtype=half."
    )  # of vLLM 0.32, platforms/cuda.py
    said = enginelog.with_remedy(words)
    assert said.startswith(words)
    assert said.endswith("Set engine.dtype to Float16, or to Auto, which takes what this GPU has.")
    assert enginelog.with_remedy("KeyError: 'mlp'") == "KeyError: 'mlp'"


def test_an_engine_that_was_killed_says_what_to_lower() -> None:
    """Where only the engine's process is killed (cgroup v1), the pod is not OOMKilled."""
    said = enginelog.with_remedy(
        "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore_DP0': -9}"
    )  # of vLLM 0.32, v1/engine/utils.py
    assert said.endswith("or raise spec.pod.resources.limits.memory.")


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (
            "Model architectures ['NobodysModel'] are not supported for now. Supported architectures: "
            + ", ".join(f"Model{number}ForCausalLM" for number in range(300)),
            "Model architectures ['NobodysModel'] are not supported for now.",
        ),  # of vLLM 0.32, model_executor/models/registry.py
        (
            "The checkpoint you are trying to load has model type `nobody` but Transformers does not recognize this "
            "architecture. This could be because of an issue with the checkpoint, or because your version of "
            "Transformers is out of date.\n\nYou can update Transformers with `pip install --upgrade transformers`.",
            "The checkpoint you are trying to load has model type `nobody` but Transformers does not recognize this "
            "architecture.",
        ),  # of transformers, models/auto/configuration_auto.py
        ("x" * 2000 + " are not supported for now", "x" * 400),
    ],
    ids=["vLLM does not have it", "transformers does not", "long"],
)
def test_an_unknown_architecture_says_what_to_do_and_not_what_nobody_can(words: str, kept: str) -> None:
    said = enginelog.with_remedy(words)
    assert said.startswith(kept)
    assert said.endswith("or ask for a server image with a later vLLM.")
    assert len(said) <= 640
    assert "pip install" not in said
