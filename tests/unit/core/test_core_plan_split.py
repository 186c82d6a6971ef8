"""Models larger than one accelerator: when their weights are split over all of them, and what would let them fit."""

from dataclasses import replace
from typing import Any

import pytest

from tuneloop_core.api import DatasetStatus, FineTuneJob
from tuneloop_core.api.formats import parse_duration
from tuneloop_core.plan import cost, split
from tuneloop_core.plan.accelerators import NodeGroup
from tuneloop_core.plan.config import read_shape
from tuneloop_core.plan.job import DOES_NOT_FIT, Facts, Plan, plan_job
from tuneloop_core.plan.memory import Load, Memory, estimate, host_bytes
from tuneloop_core.plan.parameters import total_parameters

GIB = 2**30
LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
}  # fmt: skip
LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
}  # fmt: skip
MIXTRAL = LLAMA_8B | {"model_type": "mixtral", "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2}
MIXTRAL_22B = MIXTRAL | {
    "hidden_size": 6144, "intermediate_size": 16384, "num_hidden_layers": 56, "num_attention_heads": 48,
}  # fmt: skip
HALF_SPARSE = LLAMA_8B | {
    "model_type": "qwen3_moe", "num_experts": 64, "moe_intermediate_size": 1024, "decoder_sparse_step": 2,
    "head_dim": 128,
}  # fmt: skip
ROWS = DatasetStatus(
    train_rows=1000, train_tokens=100_000, trained_tokens=50_000, validation_rows=100, validation_tokens=10_000,
    max_tokens=400,
)  # fmt: skip
FULL, QLORA, DORA = ({"adapter": name} for name in ("None", "QLoRA", "DoRA"))


def plan(config: dict[str, Any], accelerators: int, product: str = "", **more: Any) -> Plan:
    resources = {"accelerators": accelerators} | more.pop("resources", {})
    groups, rows = more.pop("groups", None), ROWS.model_copy(update=more.pop("rows", {}))
    body = {"model": {"uri": "hf://o/m"}, "dataset": {"uri": "hf://datasets/o/d"}, "resources": resources, **more}
    body["pod"] = {"nodeSelector": {"nvidia.com/gpu.product": product}} if product else {}
    job = FineTuneJob.model_validate({"metadata": {"name": "a"}, "spec": body})
    return plan_job(job.spec, Facts(shape=read_shape(config), dataset=rows, groups=groups))


H100, H200, A10G = "NVIDIA-H100-80GB-HBM3", "NVIDIA-H200", "NVIDIA-A10G"


@pytest.mark.parametrize(
    ("config", "accelerators", "product", "method", "shards"),
    [
        (LLAMA_70B, 8, H100, {}, 8),
        (LLAMA_70B, 8, H100, DORA, 8),
        (LLAMA_70B, 1, H100, {}, None),
        (LLAMA_70B, 1, H100, QLORA, 1),  # 4 bits a weight fit one
        (LLAMA_70B, 8, A10G, QLORA, None),  # and are not split
        (LLAMA_70B, 8, H100, FULL, None),
        (LLAMA_8B, 1, H100, FULL, None),
        (LLAMA_8B, 4, H100, FULL, 4),
        (LLAMA_8B, 8, H100, {}, 1),  # what fits is never split
        (LLAMA_8B, 8, A10G, {}, 1),
        (LLAMA_8B, 2, "Tesla-T4", {}, None),
        (MIXTRAL, 4, H100, {}, 4),
        (LLAMA_70B, 4, "", {}, 4),  # nothing tells which accelerators there are
        (LLAMA_8B, 4, "", {}, 1),
    ],
)
def test_when_weights_are_split(
    config: dict[str, Any], accelerators: int, product: str, method: dict[str, str], shards: int | None
) -> None:
    found = plan(config, accelerators, product, method=method)
    assert (found.status.shards if found.feasible else None) == shards, found.status.message
    assert found.reason == ("" if shards else DOES_NOT_FIT)
    if shards and shards > 1:
        assert f"the weights split over {shards} accelerators" in found.status.message


def test_all_processes_of_all_nodes_share_a_model() -> None:
    found = plan(LLAMA_70B, 8, H100, method=FULL, resources={"nodes": 4})
    assert found.feasible
    assert found.status.shards == 32


def test_slices_of_a_device_are_not_joined() -> None:
    found = plan(LLAMA_70B, 8, resources={"acceleratorResource": "nvidia.com/mig-3g.40gb"})
    assert found.reason == DOES_NOT_FIT
    assert "resources.accelerators" not in found.status.message


def test_where_a_whole_model_fits_the_larger_nodes_it_is_not_split() -> None:
    groups = (NodeGroup(A10G, 23028, {}), NodeGroup("NVIDIA-H100-80GB-HBM3", 81559, {}))
    wide = LLAMA_8B | {"num_hidden_layers": 64}
    found = plan(wide, 4, groups=groups)
    assert (found.status.accelerator, found.status.shards) == ("H100", 1)


@pytest.mark.parametrize(
    ("config", "accelerators", "product", "method", "advice", "changed"),
    [
        (LLAMA_70B, 1, H100, {}, "resources.accelerators: 4, over which", {"accelerators": 4}),
        (LLAMA_8B, 1, H100, FULL, "resources.accelerators: 2, over which", {"accelerators": 2}),
        (LLAMA_70B, 8, H100, FULL, "resources.accelerators: 8, nodes: 4, over", {"accelerators": 8, "nodes": 4}),
    ],
)
def test_a_refusal_says_how_many_accelerators_would_do_and_they_do(
    config: dict[str, Any],
    accelerators: int,
    product: str,
    method: dict[str, str],
    advice: str,
    changed: dict[str, int],
) -> None:
    refused = plan(config, accelerators, product, method=method)
    assert advice in refused.status.message
    count = changed.pop("accelerators")
    assert plan(config, count, product, method=method, resources=changed).feasible
    fewer = plan(config, count // 2, product, method=method, resources=changed).status
    assert fewer.memory_bytes > fewer.memory_limit_bytes


def test_qlora_says_that_it_is_not_split_and_what_would_fit() -> None:
    message = plan(LLAMA_70B, 8, A10G, method=QLORA).status.message
    assert "QLoRA does not split a model over accelerators" in message
    assert (
        "method.adapter: LoRA and resources.accelerators: 8, nodes: 4, over which the weights are then split" in message
    )
    assert len(message) < 900


# ---- memory ----------------------------------------------------------------------------------------------------------


def load(**more: Any) -> Load:
    return replace(Load("cuda", 2, 2048, 1024), **more)


def memory(config: dict[str, Any], **more: Any) -> Memory:
    shape = read_shape(config)
    assert shape is not None
    return estimate(shape, load(**more))


def test_lora_splits_the_weights_and_nothing_else() -> None:
    whole, part = (memory(LLAMA_70B, processes=8, shards=shards) for shards in (1, 8))
    assert (whole.gradients, whole.optimizer, whole.activations, whole.logits) == (
        part.gradients, part.optimizer, part.activations, part.logits,
    )  # fmt: skip
    shape = read_shape(LLAMA_70B)
    assert shape is not None
    rows = 2 * total_parameters(shape) / 8
    assert rows < part.weights < rows + 11 * GIB, "and embedding, head and a few layers, gathered"


def test_copies_of_adapted_experts_are_on_every_process_whatever_their_number() -> None:
    """Of Mixtral's 32 layers 2.6 GiB each, in packs of any size; a layer's at a time with recompute."""
    layer = 2 * 8 * 3 * 4096 * 14336
    only = {"target_modules": "q_proj,k_proj,v_proj,o_proj"}
    for shards, pack in ((4, 2048), (64, 256)):
        way = {"shards": shards, "pack_tokens": pack, "trained_tokens": pack // 2}
        every, spared = (memory(MIXTRAL, **way, recompute=recompute).activations for recompute in (False, True))
        none = memory(MIXTRAL, **way, **only).activations
        assert every - none == pytest.approx(1.1 * 32 * layer, rel=0.02)
        assert 1.1 * layer < spared < 3 * layer
    assert memory(MIXTRAL).gradients - memory(MIXTRAL, **only).gradients > layer * 2 / 3, "and that of gate and up"
    assert plan(MIXTRAL, 4, H100).status.recompute


def test_full_training_splits_sixteen_bytes_a_parameter() -> None:
    shape = read_shape(LLAMA_8B)
    assert shape is not None
    two, many = (memory(LLAMA_8B, adapter="Full", shards=shards) for shards in (2, 64))
    held = [part.weights + part.gradients + part.optimizer for part in (two, many)]
    assert held[0] - held[1] == pytest.approx(16 * total_parameters(shape) * (1 / 2 - 1 / 64), rel=1e-6)


@pytest.mark.parametrize(("processes", "held"), [(1, 8), (2, 4), (3, 3), (8, 1), (16, 1), (64, 1)])
def test_routed_experts_are_not_cut(processes: int, held: int) -> None:
    """Of the 8 of each layer."""
    shape = read_shape(MIXTRAL)
    assert shape is not None
    expert = 3 * 4096 * 14336 * 32  # one of every layer
    rest = (total_parameters(shape) - 8 * expert) / processes
    assert split.held_parameters(shape, processes) == pytest.approx(rest + held * expert, abs=1)


@pytest.mark.parametrize(
    ("processes", "sent"),  # experts that a layer has room for
    [(2, 8), (3, 9), (8, 8), (16, 16), (64, 64)],
)
def test_each_gathered_layer_has_room_for_what_its_experts_are_filled_up_by(processes: int, sent: int) -> None:
    """The one that is computed too: its tensors are views of what was gathered."""
    shape = read_shape(MIXTRAL)
    assert shape is not None
    layer = split.largest_layer(shape) + (sent - 8) * 3 * 4096 * 14336
    assert split.sent_layer(shape, processes) == layer
    gathered = split.weight_bytes(shape, 2, processes, trained=False) - 2 * split.held_parameters(shape, processes)
    assert gathered == 2 * (split.outer_parameters(shape) + 3 * layer)


@pytest.mark.parametrize(
    ("config", "product", "nodes", "fits"),
    [
        (MIXTRAL, H100, 1, True),
        (MIXTRAL, H100, 8, False),  # 94 of 79.6 GiB: each of three layers has room for 64 experts
        (MIXTRAL_22B, H200, 2, True),
        (MIXTRAL_22B, H200, 8, False),
    ],
)
def test_many_more_processes_than_experts_do_not_fit(
    config: dict[str, Any], product: str, nodes: int, fits: bool
) -> None:
    found = plan(config, 8, product, resources={"nodes": nodes}, rows={"max_tokens": 2000})
    assert found.feasible is fits, found.status.message


def test_beyond_as_many_processes_as_experts_all_weights_take_no_less() -> None:
    few, many = (memory(MIXTRAL, adapter="Full", shards=shards) for shards in (8, 16))
    expert = 3 * 4096 * 14336 * 32
    for part, numbers in (("weights", 4), ("gradients", 4), ("optimizer", 8)):
        less = getattr(few, part) - getattr(many, part)
        assert less < 0.02 * numbers * expert, "attention, embedding and head are shared still"
    assert few.weights < many.weights, "a layer is gathered with room for 16 experts"


def test_more_accelerators_than_experts_are_no_advice() -> None:
    message = plan(MIXTRAL, 8, H100, method=FULL).status.message
    assert "No pod was made" in message
    assert "resources.accelerators" not in message
    assert "method.adapter: LoRA" in message
    for nodes in (2, 4, 8):
        assert plan(MIXTRAL, 8, H100, method=FULL, resources={"nodes": nodes}).reason == DOES_NOT_FIT


@pytest.mark.parametrize(
    ("config", "processes", "gib"),
    [
        (LLAMA_8B, 8, 2 * 128256 * 4096 * 4 / GIB),  # the embedding
        (MIXTRAL, 8, 2 * 8 * 2 * 14336 * 4096 * 4 / GIB),  # gate and up of a layer's 8 experts
        (MIXTRAL, 16, 2 * 16 * 2 * 14336 * 4096 * 4 / GIB),  # and room for 8 more
    ],
)
def test_what_is_written_is_gathered_a_tensor_at_a_time(config: dict[str, Any], processes: int, gib: float) -> None:
    shape = read_shape(config)
    assert shape is not None
    assert split.saving_bytes(shape, processes) / GIB == pytest.approx(gib)


@pytest.mark.parametrize("config", [LLAMA_8B, LLAMA_70B, MIXTRAL, HALF_SPARSE])
def test_layers_and_what_is_in_none_are_the_whole_model(config: dict[str, Any]) -> None:
    shape = read_shape(config)
    assert shape is not None
    least = (total_parameters(shape) - split.outer_parameters(shape)) / shape.layers
    largest = split.largest_layer(shape)
    assert least <= largest <= 2 * least
    assert (largest > 1.5 * least) is (config is HALF_SPARSE)


@pytest.mark.parametrize(
    ("way", "more", "gib"),
    [
        (load(shards=8), {}, 8 * 3 + 15.0),  # the first process reads for all
        (load(shards=8), {"keeps_best": True}, 8 * 3 + 15.0 + 8 * 0.16),
        (load(shards=8, adapter="Full"), {"writes_model": True, "keeps_best": True}, 8 * 3 + 2 * 15.0 + 29.9),
    ],
)
def test_host_memory_holds_a_split_model_once(way: Load, more: dict[str, bool], gib: float) -> None:
    shape = read_shape(LLAMA_8B)
    assert shape is not None
    found = host_bytes(shape, way, 8, **{"keeps_best": False, "writes_model": False} | more)
    assert found / GIB == pytest.approx(gib, abs=0.3)


def test_gathering_takes_time_and_nodes_are_slower() -> None:
    times = [plan(LLAMA_70B, each, H100, resources={"nodes": nodes}).status for each, nodes in ((8, 1), (4, 2))]
    assert times[0].shards == times[1].shards == 8
    near, far = (parse_duration(status.estimated_duration) for status in times)
    assert far > 3 * near


@pytest.fixture
def gathers(monkeypatch: pytest.MonkeyPatch) -> list[cost.Gathers]:
    """What each plan that is made counts."""
    found: list[cost.Gathers] = []
    real = cost.Crew

    def noting(processes: int, nodes: int, steps: int, trained: int, counted: cost.Gathers) -> cost.Crew:
        found.append(counted)
        return real(processes, nodes, steps, trained, counted)

    monkeypatch.setattr(cost, "Crew", noting)
    return found


@pytest.mark.parametrize(
    ("rows", "training", "rounds"),
    [  # of 8 processes; 300,000 tokens in 21 steps of about 14,300, which are 143 rows of 100 tokens
        ({}, {}, 21),
        ({}, {"packing": False}, 21 * 18),  # a row a process
        ({"max_tokens": 8000}, {"maxSequenceLength": 8192}, 21),  # a step has a round, however large its packs are
        ({}, {"tokensPerStep": 65536}, 6 * 1),  # 500 rows, 81 in a pack of 8192
        ({"train_rows": 16, "max_tokens": 8000}, {"maxSequenceLength": 8192, "tokensPerStep": 65536}, 6 * 1),
        ({"train_rows": 16, "max_tokens": 8000}, {"maxSequenceLength": 8192, "tokensPerStep": 10**5}, 3 * 2),
    ],
)
def test_rounds_of_packs_that_gather_the_model(
    rows: dict[str, int], training: dict[str, Any], rounds: int, gathers: list[cost.Gathers]
) -> None:
    """In which 16 rows of 6250 tokens go one a pack."""
    plan(LLAMA_70B, 8, H100, training=training, rows=rows)
    assert gathers[0].rounds == rounds


@pytest.mark.parametrize(
    ("objective", "measured", "evaluated"),
    [("SFT", 0, 0), ("DPO", 0, 1100), ("KTO", 21, 1100)],  # the base sees each of 1000 rows and 100 held-out ones
)
def test_passes_without_a_gradient_that_gather_the_model(
    objective: str, measured: int, evaluated: int, gathers: list[cost.Gathers]
) -> None:
    evaluation = {"maxSamples": 100, "generations": 32, "maxNewTokens": 64}
    plan(LLAMA_70B, 8, H100, method={"objective": objective}, evaluation=evaluation)
    twice = 2 * (100 / 20 + 1 + 64)  # held-out rows in packs of 2048 tokens, a prompt and the tokens of its answer
    assert (gathers[0].measured, gathers[0].evaluated) == (measured, evaluated + twice)


def test_tasks_gather_the_model_for_every_batch_and_generated_token() -> None:
    asked, none = (
        plan(LLAMA_70B, 8, H100, rows={"task_tokens": 10**5, "task_passes": each}).status for each in (400, 0)
    )
    gathering = 2 * 400 / 4 * 2 * asked.total_parameters * 7 / 8 / cost.LINK_BYTES_PER_SECOND["node"]
    more = parse_duration(asked.tasks_duration) - parse_duration(none.tasks_duration)
    assert more == pytest.approx(gathering, abs=1), "four rows at once, of base and tuned model"
    assert parse_duration(asked.evaluation_duration) > parse_duration(asked.tasks_duration) > gathering


def test_longer_rows_are_never_planned_to_take_less_time() -> None:
    found = [
        plan(
            LLAMA_70B, 8, H100, resources={"nodes": 2}, rows={"max_tokens": longest},
            training={"maxSequenceLength": 8192, "tokensPerStep": 16384, "maxDuration": "999h"},
        ).status
        for longest in (400, 1024, 4096)
    ]  # fmt: skip
    assert [status.shards for status in found] == [16] * 3
    assert [status.pack_tokens for status in found] == [1024, 1024, 4096], "in which held-out rows take fewer passes"
    times = [parse_duration(each.estimated_duration) - parse_duration(each.evaluation_duration) for each in found]
    assert times == sorted(times)


def test_the_base_is_gathered_for_every_pair_that_it_sees() -> None:
    rows = {"train_rows": 10_000, "train_tokens": 5_000_000, "trained_tokens": 2_500_000}
    found = plan(LLAMA_70B, 8, H100, method={"objective": "DPO"}, rows=rows).status
    weights = 2 * found.total_parameters * 7 / 8
    assert parse_duration(found.evaluation_duration) >= 10_000 * weights / cost.LINK_BYTES_PER_SECOND["node"]
