"""Adapters: the plan, the folder's check, and rounds against an engine that only remembers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from server_fixtures import adapter_list, write_adapter, write_json

from tuneloop_core.api.engine import EngineLoRA
from tuneloop_core.serving import Adapter
from tuneloop_server import adapterplan
from tuneloop_server.adapterfolder import (
    AdapterMissingError,
    AdapterRefusedError,
    check_adapter,
    config_faults,
    folder_of,
)
from tuneloop_server.adapterplan import Desired, Record, plan
from tuneloop_server.adapters import AdapterError, Adapters
from tuneloop_server.modelfolder import ModelFacts

LORA = EngineLoRA(max_rank=16, max_active=1, max_cached=2)
MODEL = ModelFacts(("LlamaForCausalLM",), 128, 2, 1, 64, 2, 1000)


def adapter(name: str, digit: str = "a") -> Adapter:
    return Adapter(name=name, digest=f"sha256:{digit * 64}", path=f"artifacts/{digit * 64}")


def record(name: str, state: adapterplan.State, retry_at: float | None = None) -> Record:
    return Record(adapter(name), since=0.0, state=state, retry_at=retry_at)


NAME = adapter("x").engine_name


@pytest.mark.parametrize(
    ("desired", "known", "unload", "load"),
    [
        pytest.param(["x"], [], [], ["x"], id="new"),
        pytest.param(["x"], [record("x", "Loaded")], [], [], id="as it should be"),
        pytest.param([], [record("x", "Loaded")], ["x"], [], id="removed"),
        pytest.param([], [record("x", "Failed")], ["x"], [], id="removed after failing"),
        pytest.param([], [record("x", "Unloading")], [], [], id="already going"),
        pytest.param(["x"], [record("x", "Unloading")], [], ["x"], id="back while going"),
        pytest.param(["x"], [record("x", "Failed", 9.0)], [], ["x"], id="time to try again"),
        pytest.param(["x"], [record("x", "Failed", 11.0)], [], [], id="too early to try again"),
        pytest.param(["x"], [record("x", "Failed", None)], [], [], id="refused for good"),
        pytest.param(["x", "y"], [record("x", "Loaded"), record("z", "Loaded")], ["z"], ["y"], id="a change"),
    ],
)
def test_plan(desired: list[str], known: list[Record], unload: list[str], load: list[str]) -> None:
    found = plan([adapter(name) for name in desired], {item.name: item for item in known}, now=10.0)
    assert [item.adapter.name for item in found.unload] == unload
    assert [item.adapter.name for item in found.load] == load


def test_a_new_digest_is_another_engine_name() -> None:
    old, new = adapter("x", "a"), adapter("x", "b")
    found = plan([new], {old.engine_name: Record(old, 0.0, "Loaded")}, now=1.0)
    assert [item.name for item in found.unload] == ["x@aaaaaaaaaaaa"]
    assert [item.name for item in found.load] == ["x@bbbbbbbbbbbb"]


def test_missing_folders_are_retried_ever_slower_and_count_as_failed_after_a_while() -> None:
    item, now = record("x", "Loading"), 0.0
    waits = []
    while item.state == "Loading":
        item = adapterplan.missing(item, "not there", now)
        waits.append((item.retry_at or 0.0) - now)
        now = item.retry_at or 0.0
    assert waits == [1, 1, 2, 4, 8, 15, 30, 30]
    assert (item.state, item.message, item.retry_at) == ("Failed", "not there", now)


def test_a_poke_outranks_an_older_file_for_a_while() -> None:
    old, new = adapter_list(adapter("x")), adapter_list(adapter("x"), adapter("y", "b"))
    desired = Desired().with_file(old).with_poke(new, now=100.0)
    assert desired.at(101.0) == new.adapters
    assert desired.with_file(old).at(101.0) == new.adapters  # the kubelet wrote an older state late
    assert desired.at(100.0 + adapterplan.POKE_HOLD) == old.adapters  # the file is the truth in the end
    caught_up = desired.with_file(new)
    assert caught_up.poke is None
    assert caught_up.with_file(old).at(102.0) == old.adapters


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"init_lora_weights": "gaussian"}, None),
        ({"r": 64}, "its rank is 64, the engine has room for 1 to 16: raise engine.lora.maxRank"),
        ({"rank_pattern": {"q_proj": 32}}, "its rank is 32"),
        ({"r": 0}, "its rank is 0"),
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"bias": "all"}, "biases"),
        ({"lora_bias": True}, "biases"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
    ],
)
def test_config_faults(change: dict[str, Any], words: str | None) -> None:
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none", **change}
    found = list(config_faults(config, max_rank=16))
    assert [words in text for text in found] == ([] if words is None else [True])  # type: ignore[operator]


def check(artifacts: Path, item: Adapter) -> None:
    check_adapter(folder_of(item, artifacts), item.digest, 16, MODEL)


def test_a_good_folder(tmp_path: Path) -> None:
    check(tmp_path, write_adapter(tmp_path, "x", 1))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"hidden": 64}, "made for a base of hidden size 64, this base has 128"),
        ({"layers": 3}, "adapts layer 2, this base has layers 0 to 1"),
    ],
)
def test_another_base(tmp_path: Path, shape: dict[str, int], words: str) -> None:
    with pytest.raises(AdapterRefusedError, match=words):
        check(tmp_path, write_adapter(tmp_path, "x", 1, **shape))  # type: ignore[arg-type]


def test_absent_and_half_written_folders_are_waited_for(tmp_path: Path) -> None:
    item = write_adapter(tmp_path, "x", 1)
    folder = folder_of(item, tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterMissingError, match=r"adapter_model\.safetensors"):
        check(tmp_path, item)
    shutil.rmtree(folder)
    with pytest.raises(AdapterMissingError, match=r"adapter_config\.json"):
        check(tmp_path, item)


def test_pickled_weights_are_never_looked_at(tmp_path: Path) -> None:
    item = write_adapter(tmp_path, "x", 1)
    weights = folder_of(item, tmp_path) / "adapter_model.safetensors"
    weights.rename(weights.with_name("adapter_model.bin"))
    with pytest.raises(AdapterMissingError):
        check(tmp_path, item)


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 8, b"\x10" + b"\0" * 7 + b"no json at all  "])
def test_broken_safetensors(tmp_path: Path, content: bytes) -> None:
    item = write_adapter(tmp_path, "x", 1)
    (folder_of(item, tmp_path) / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(AdapterRefusedError, match="no safetensors file"):
        check(tmp_path, item)


def test_a_folder_that_names_another_digest(tmp_path: Path) -> None:
    item = write_adapter(tmp_path, "x", 1)
    (folder_of(item, tmp_path) / "DIGEST").write_text("sha256:" + "f" * 64)
    with pytest.raises(AdapterRefusedError, match="ffffffffffff"):
        check(tmp_path, item)


@pytest.mark.parametrize("path", ["artifacts/../../etc", "/etc", f"artifacts/{'b' * 64}", "models/x", ""])
def test_paths_that_are_not_the_digest(path: str) -> None:
    with pytest.raises(AdapterRefusedError, match="publish it again"):
        folder_of(adapter("x").model_copy(update={"path": path}), Path("/artifacts"))


class Memory:
    """An engine that remembers names, and holds the weights of as many as were loaded last."""

    def __init__(self, room: int = 9) -> None:
        self.room = room
        self.shown: dict[str, Path] = {}
        self.kept: set[str] = set()
        self.busy: set[str] = set()
        self.broken: set[str] = set()

    async def load_adapter(self, name: str, path: Path) -> None:
        if name in self.broken:
            raise AdapterError("no room")
        self.shown[name] = path
        self.kept.add(name)

    async def hide_adapter(self, name: str) -> None:
        del self.shown[name]

    async def drop_adapter(self, name: str) -> None:
        self.kept.remove(name)

    async def held_adapters(self) -> frozenset[str]:
        return frozenset(list(self.shown)[-self.room :])

    def running(self, name: str) -> int:
        return int(name in self.busy)


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    (tmp_path / "artifacts").mkdir()
    return tmp_path / "artifacts"


def states(adapters: Adapters) -> dict[str, str]:
    return {state.engine_name: state.state for state in adapters.states()}


async def test_rounds(tmp_path: Path, artifacts: Path) -> None:
    red, blue = write_adapter(artifacts, "red", 1), write_adapter(artifacts, "blue", 2)
    file, engine = tmp_path / "adapters.json", Memory()
    write_json(file, adapter_list(red))
    adapters = Adapters(file, artifacts, LORA, MODEL)
    await adapters.round()
    assert (states(adapters), adapters.settled) == ({red.engine_name: "Loading"}, False)

    adapters.attach(engine)
    await adapters.round()
    assert (states(adapters), adapters.settled) == ({red.engine_name: "Loaded"}, True)

    adapters.poke(adapter_list(red, blue))
    await adapters.round()
    assert set(engine.shown) == {red.engine_name, blue.engine_name}

    engine.busy.add(red.engine_name)
    adapters.poke(adapter_list(blue))
    await adapters.round()
    assert set(engine.shown) == {blue.engine_name}
    assert engine.kept == {red.engine_name, blue.engine_name}
    assert states(adapters)[red.engine_name] == "Unloading"

    engine.busy.clear()
    await adapters.round()
    assert engine.kept == {blue.engine_name}
    assert states(adapters) == {blue.engine_name: "Loaded"}


async def test_one_bad_adapter_neither_blocks_others_nor_readiness(tmp_path: Path, artifacts: Path) -> None:
    good, big = write_adapter(artifacts, "good", 1), write_adapter(artifacts, "big", 2, rank=32)
    unlucky = write_adapter(artifacts, "unlucky", 3)
    engine = Memory()
    engine.broken.add(unlucky.engine_name)
    write_json(tmp_path / "adapters.json", adapter_list(big, unlucky, good))
    adapters = Adapters(tmp_path / "adapters.json", artifacts, LORA, MODEL)
    adapters.attach(engine)
    await adapters.round()
    assert adapters.settled
    assert states(adapters) == {
        big.engine_name: "Failed",
        unlucky.engine_name: "Failed",
        good.engine_name: "Loaded",
    }


async def test_more_than_memory_holds_are_parked_and_one_that_could_not_come_back_is_hidden(
    tmp_path: Path, artifacts: Path
) -> None:
    listed = [write_adapter(artifacts, name, seed) for seed, name in enumerate(("red", "blue", "green"))]
    file, engine = tmp_path / "adapters.json", Memory(room=2)
    write_json(file, adapter_list(*listed))
    adapters = Adapters(file, artifacts, LORA, MODEL)
    adapters.attach(engine)
    await adapters.round()
    assert adapters.settled
    # They load side by side: which came first, and so is parked, is not said.
    assert sorted(states(adapters).values()) == ["Loaded", "Loaded", "Parked"]
    assert all(state.answers for state in adapters.states())

    parked = next(adapter for adapter in listed if states(adapters)[adapter.engine_name] == "Parked")
    others = [adapter for adapter in listed if adapter is not parked]
    shutil.rmtree(folder_of(parked, artifacts))
    await adapters.round()
    assert set(engine.shown) == {adapter.engine_name for adapter in others}
    found = {state.engine_name: state for state in adapters.states()}[parked.engine_name]
    assert not found.answers
    assert "its folder left the store" in found.message

    adapters.poke(adapter_list(*others))
    await adapters.round()
    assert [state.state for state in adapters.states()] == ["Loaded", "Loaded"]


async def test_a_list_of_a_later_operator_is_followed(tmp_path: Path, artifacts: Path) -> None:
    file, red = tmp_path / "adapters.json", write_adapter(artifacts, "red", 1)
    content = json.loads(adapter_list(red).model_dump_json(by_alias=True))
    content["adapters"][0]["priority"] = 7
    file.write_text(json.dumps(content | {"generation": 3}))
    adapters = Adapters(file, artifacts, LORA, MODEL)
    adapters.attach(Memory())
    await adapters.round()
    assert states(adapters) == {red.engine_name: "Loaded"}


async def test_a_broken_list_keeps_the_one_before(tmp_path: Path, artifacts: Path) -> None:
    file, red = tmp_path / "adapters.json", write_adapter(artifacts, "red", 1)
    write_json(file, adapter_list(red))
    adapters = Adapters(file, artifacts, LORA, MODEL)
    adapters.attach(Memory())
    await adapters.round()
    file.write_text("[")
    await adapters.round()
    file.unlink()
    await adapters.round()
    assert states(adapters) == {red.engine_name: "Loaded"}


def test_a_record_can_be_shown_with_a_long_message() -> None:
    assert len(replace(record("x", "Failed"), message="m" * 5000).shown().message) == 1000
