"""Plans: golden pairs tests/golden/{input,output}/plan-*.yaml, and tables of what is refused and what would fit.

After a wanted change: ``GOLDEN=write pytest tests/unit/core/test_core_plan_job.py``, then read the diff.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuneloop_core.api import DatasetStatus, FineTuneJob
from tuneloop_core.api.formats import parse_duration
from tuneloop_core.plan import cost
from tuneloop_core.plan.accelerators import Accelerator, NodeGroup, PlanSettings
from tuneloop_core.plan.config import read_shape
from tuneloop_core.plan.job import DOES_NOT_FIT, SEQUENCE_TOO_LONG, TARGETS_NOT_FOUND, Facts, Plan, plan_job
from tuneloop_core.plan.machines import packs
from tuneloop_core.plan.memory import Load, estimate, host_bytes
from tuneloop_core.plan.parameters import total_parameters

GOLDEN = Path(__file__).parents[2] / "golden"
INPUTS = sorted((GOLDEN / "input").glob("plan-*.yaml"))
GIB = 2**30
LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
}  # fmt: skip
SMOLLM2 = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
ROWS = DatasetStatus(
    train_rows=1000, train_tokens=100_000, trained_tokens=50_000, validation_rows=100, validation_tokens=10_000,
    max_tokens=400,
)  # fmt: skip
T4 = NodeGroup("Tesla-T4", 15360, {"pool": "small"})
A100 = NodeGroup("NVIDIA-A100-SXM4-80GB", 81920, {"pool": "big"})


@pytest.mark.parametrize("source", INPUTS, ids=lambda path: path.stem)
def test_golden(source: Path) -> None:
    case = yaml.safe_load(source.read_text())
    found = plan(case["config"], DatasetStatus.model_validate(case["dataset"]), case.get("facts", {}), **case["spec"])
    built = {"reason": found.reason, "plan": found.status.to_dict()}
    target = GOLDEN / "output" / source.name
    if os.environ.get("GOLDEN") == "write":
        target.write_text(yaml.safe_dump(built, sort_keys=False, width=120))
    assert yaml.safe_load(target.read_text()) == built


def test_every_plan_has_its_input() -> None:
    assert {path.name for path in (GOLDEN / "output").glob("plan-*.yaml")} == {path.name for path in INPUTS}
    assert len(INPUTS) >= 4


def test_several_devices_share_training_and_are_all_paid() -> None:
    big = ROWS.model_copy(update={"train_tokens": 50_000_000, "trained_tokens": 25_000_000, "train_rows": 200_000})
    node = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
    pod = {"nodeSelector": node}
    one, many = (
        plan(LLAMA, big, resources={"accelerators": count, "nodes": nodes}, training={"maxDuration": "999h"}, pod=pod)
        for count, nodes in ((1, 1), (4, 2))
    )
    seconds = [parse_duration(found.status.estimated_duration) for found in (one, many)]
    assert seconds[0] / 8 < seconds[1] < seconds[0] / 6, "evaluation is not shared, and gradients are exchanged"
    assert many.status.price_per_hour == pytest.approx(8 * one.status.price_per_hour)
    assert many.status.memory_bytes <= one.status.memory_bytes


def test_the_time_of_evaluation_tasks_is_planned_and_told() -> None:
    without, asked = (plan(SMOLLM2, replace_rows(task_tokens=tokens), **CPU).status for tokens in (0, 50_000))
    tasks = parse_duration(asked.tasks_duration)
    assert tasks > 60, "2 x 50,000 tokens of 135 M parameters at 30 GFLOP/s, and lm-eval's imports"
    longer = parse_duration(asked.estimated_duration) - parse_duration(without.estimated_duration)
    assert longer == pytest.approx(tasks, abs=60), "over an hour, times are told in minutes"
    assert asked.price > without.price
    assert f"{asked.tasks_duration} of it for evaluation.tasks" in asked.message
    assert (without.tasks_duration, "evaluation.tasks" in without.message) == ("", False)


@pytest.mark.parametrize(
    ("objective", "more", "passes"),
    [
        ("SFT", {}, {"scored_tokens": 10_000}),
        ("DPO", {}, {"scored_tokens": 10_000, "reference_tokens": 110_000}),
        ("KTO", {}, {"scored_tokens": 20_000, "reference_tokens": 220_000, "measured_tokens": 300_000}),
        ("KTO", {"maxSteps": 2, "tokensPerStep": 1000},
         {"scored_tokens": 20_000, "reference_tokens": 24_000, "measured_tokens": 2000}),
    ],
)  # fmt: skip
def test_passes_that_an_objective_needs_besides(
    objective: str, more: dict[str, int], passes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once over what is trained and scored by the base, of both of KTO's answers; and KTO's in every step."""
    counted: list[cost.Work] = []
    real = cost.stage_seconds

    def noting(shape: Any, work: cost.Work, *rest: Any) -> float:
        counted.append(work)
        return real(shape, work, *rest)

    monkeypatch.setattr(cost, "stage_seconds", noting)
    plan(SMOLLM2, method={"objective": objective}, training={"packing": False} | more, **CPU)
    wanted = {"reference_tokens": 0, "measured_tokens": 0} | passes
    assert {name: getattr(counted[0], name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("work", "max_seconds", "passes"),
    [
        ({}, 1e9, 0),
        ({"reference_tokens": 5000}, 1e9, 5000),
        ({"measured_tokens": 4000}, 1e9, 4000),
        ({"scored_tokens": 1000}, 1e9, 2000),  # of the base and of the tuned model
        ({"measured_tokens": 4000, "reference_tokens": 100}, 0.5, 2100),  # half the steps, all of the reference
    ],
)
def test_a_pass_without_a_gradient_costs_a_forward_pass(work: dict[str, int], max_seconds: float, passes: int) -> None:
    """At a rate at which training takes one second, so that ``max_seconds`` of 0.5 cuts it in half."""
    shape = read_shape(SMOLLM2)
    assert shape is not None
    base = cost.Work(tokens=4000, mean_length=100, trained_share=0.5)
    rate = 4000 * cost.training_flops(shape, base, "LoRA", False)
    seconds = cost.stage_seconds(shape, replace(base, **work), "LoRA", False, rate, max_seconds, 0)
    forward = cost.forward_flops(shape, 100, 0.5) / rate
    assert seconds == pytest.approx(cost.START_SECONDS + min(1.0, max_seconds) + passes * forward)


def plan(
    config: dict[str, Any], dataset: DatasetStatus = ROWS, facts: dict[str, Any] | None = None, **spec: Any
) -> Plan:
    body = {"model": {"uri": "hf://o/m"}, "dataset": {"uri": "hf://datasets/o/d"}} | spec
    job = FineTuneJob.model_validate({"metadata": {"name": "a"}, "spec": body})
    return plan_job(job.spec, Facts(**{"shape": read_shape(config), "dataset": dataset} | (facts or {})))


def cpu(limit_gib: float, **more: Any) -> dict[str, Any]:
    return {"memory_limit": int(limit_gib * GIB)} | more


CPU = {"resources": {"accelerators": 0}}


def test_the_demo_fits_and_so_do_tiny_models_in_3_gib() -> None:
    assert plan(SMOLLM2, facts=cpu(8), **CPU).feasible
    tiny = SMOLLM2 | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}
    found = plan(tiny | {"num_attention_heads": 4, "num_key_value_heads": 2}, facts=cpu(3), **CPU)
    assert found.feasible
    assert found.status.memory_bytes < 1 * GIB


def test_what_does_not_fit_on_cpu_says_how_much_would() -> None:
    found = plan(LLAMA, facts=cpu(8), **CPU)
    assert found.reason == DOES_NOT_FIT
    assert "pod.resources.limits.memory allows 8.0 GiB" in found.status.message
    assert "Would fit: pod.resources.limits.memory: " in found.status.message
    raised = int(found.status.message.split("Would fit: pod.resources.limits.memory: ")[1].split("Gi")[0])
    assert plan(LLAMA, facts=cpu(raised), **CPU).feasible


def test_without_a_limit_nothing_is_refused() -> None:
    assert plan(LLAMA, facts=cpu(0), **CPU).feasible


def test_float32_may_be_too_much_where_bfloat16_is_not() -> None:
    found = plan(SMOLLM2, facts=cpu(2.0), **CPU)
    assert found.feasible
    assert found.status.recompute


def test_without_sizes_only_steps_are_planned() -> None:
    found = plan({}, facts=cpu(1), **CPU)
    assert found.feasible
    assert (found.status.steps, found.status.memory_bytes) == (21, 0)
    assert "does not tell its sizes" in found.status.message


@pytest.mark.parametrize(
    ("spec", "facts", "accelerator", "reason"),
    [
        ({}, {}, "A10G", ""),  # neither nodes nor selector: the smallest of the table that it fits
        ({}, {"groups": ()}, "A10G", ""),  # no node is labelled
        ({}, {"groups": (T4, A100)}, "A100-80GB", ""),
        ({}, {"groups": (T4,)}, "T4", DOES_NOT_FIT),
        ({"pod": {"nodeSelector": {"pool": "small"}}}, {"groups": (T4, A100)}, "T4", DOES_NOT_FIT),
        ({"pod": {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}}}, {}, "H100", ""),
        ({"pod": {"nodeSelector": {"nvidia.com/gpu.product": "Tesla-T4"}}}, {}, "T4", DOES_NOT_FIT),
        ({"resources": {"acceleratorResource": "nvidia.com/mig-1g.10gb"}}, {}, "mig-1g.10gb", DOES_NOT_FIT),
        ({"resources": {"acceleratorResource": "example.com/gpu"}}, {}, "", ""),
    ],
)
def test_which_accelerator_an_8b_model_is_planned_for(
    spec: dict[str, Any], facts: dict[str, Any], accelerator: str, reason: str
) -> None:
    found = plan(LLAMA, facts=facts, **spec)
    assert (found.status.accelerator, found.reason) == (accelerator, reason)


def test_a_refusal_names_what_would_fit_and_that_does() -> None:
    t4 = {"pod": {"nodeSelector": {"nvidia.com/gpu.product": "Tesla-T4"}}}
    found = plan(LLAMA, **t4)
    assert "method.adapter: QLoRA" in found.status.message
    assert "A10G (22.5 GiB)" in found.status.message
    assert plan(LLAMA, method={"adapter": "QLoRA"}, **t4).feasible


def test_an_accelerator_without_bfloat16_units_is_planned_in_float32() -> None:
    small = SMOLLM2 | {"num_hidden_layers": 20}
    t4, l4 = (
        plan(small, pod={"nodeSelector": {"nvidia.com/gpu.product": name}}).status for name in ("Tesla-T4", "NVIDIA-L4")
    )
    assert t4.memory is not None
    assert l4.memory is not None
    assert t4.memory.weights == 2 * l4.memory.weights
    assert "Planned for T4, in float32, since it has no bfloat16 units" in t4.message
    assert "float32" not in l4.message


def test_a_larger_model_on_the_same_card_is_recomputed() -> None:
    wide = LLAMA | {"num_hidden_layers": 44}
    found = plan(wide, replace_rows(max_tokens=2048), pod={"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L40S"}})
    assert found.feasible
    assert plan(wide, replace_rows(max_tokens=8000), training={"maxSequenceLength": 8192}).status.recompute is False


def replace_rows(**fields: int) -> DatasetStatus:
    return ROWS.model_copy(update=fields)


@pytest.mark.parametrize(
    ("spec", "dataset", "reason", "words"),
    [
        ({"training": {"maxSequenceLength": 16384}}, {"max_tokens": 9000}, SEQUENCE_TOO_LONG, "at most 8192"),
        ({"training": {"maxSequenceLength": 16384}}, {"max_tokens": 8000}, "", ""),
        ({"method": {"lora": {"targetModules": "query,value"}}}, {}, TARGETS_NOT_FOUND, "it has down_proj, gate_proj"),
        ({"method": {"lora": {"targetModules": "q_proj,v_porj"}}}, {}, TARGETS_NOT_FOUND, "is named v_porj; it has"),
        ({"method": {"lora": {"targetModules": "all-linear,q_proj"}}}, {}, TARGETS_NOT_FOUND, "is named all-linear;"),
        ({"method": {"lora": {"targetModules": "q_proj,v_proj"}}}, {}, "", ""),
        ({"method": {"lora": {"targetModules": "self_attn.q_proj,v_proj"}}}, {}, "", ""),
    ],
)
def test_what_no_machine_makes_right(spec: dict[str, Any], dataset: dict[str, int], reason: str, words: str) -> None:
    found = plan(LLAMA, replace_rows(**dataset), **spec)
    assert found.reason == reason
    assert words in found.status.message


def test_names_with_their_parents_are_counted_as_those_without() -> None:
    short, long = (
        plan(LLAMA, method={"lora": {"targetModules": names}}).status.trainable_parameters
        for names in ("q_proj,up_proj", "self_attn.q_proj,mlp.up_proj")
    )
    assert short == long > 0


def test_merging_over_four_bits_needs_room_for_the_base_as_it_was() -> None:
    t4 = {"groups": (T4,)}  # 15 GiB; the base has 16 GB in two bytes a weight
    adapter, merged = (plan(LLAMA, facts=t4, method={"adapter": "QLoRA", "merge": merge}) for merge in (False, True))
    assert adapter.feasible
    assert merged.reason == DOES_NOT_FIT
    assert "method.merge: false" in merged.status.message
    small = {"facts": {"groups": (A100,)}, "training": {"tokensPerStep": 256}}
    held, whole = (
        plan(LLAMA, method={"adapter": "QLoRA", "merge": merge}, **small).status  # type: ignore[arg-type]
        for merge in (False, True)
    )
    assert held.memory_bytes < 2 * whole.total_parameters < whole.memory_bytes
    assert plan(LLAMA, method={"merge": True}).status.memory == plan(LLAMA).status.memory, "LoRA merges in place"


def test_what_is_not_training_is_planned_apart() -> None:
    longer, short = (plan(SMOLLM2, training={"maxDuration": most}, **CPU).status for most in ("999h", "1s"))
    assert longer.evaluation_duration == short.evaluation_duration
    left = parse_duration(short.estimated_duration) - parse_duration(short.evaluation_duration)
    assert left == pytest.approx(1, abs=1), "maxDuration"


def test_messages_stay_short() -> None:
    for facts in ({}, {"groups": (T4,)}):
        assert len(plan(LLAMA, facts=facts).status.message) < 900


# ---- memory ----------------------------------------------------------------------------------------------------------


def load(**more: Any) -> Load:
    return replace(Load("cuda", 2, 2048, 1024), **more)


@pytest.mark.parametrize(
    ("less", "more"),
    [
        (load(recompute=True), load()),
        (load(adapter="QLoRA"), load()),
        (load(), load(adapter="DoRA")),
        (load(adapter="DoRA"), load(adapter="Full")),
        (load(pack_tokens=1024), load()),
        (load(rank=8), load(rank=64)),
        (load(), load(number_bytes=4)),
        (load(), load(answers=64, longest_prompt=8000, new_tokens=64)),
    ],
)
def test_what_takes_less_is_estimated_lower(less: Load, more: Load) -> None:
    shape = read_shape(LLAMA)
    assert shape is not None
    assert estimate(shape, less).total < estimate(shape, more).total


def test_float32_weights_are_their_own_masters() -> None:
    shape = read_shape(SMOLLM2)
    assert shape is not None
    full = load(adapter="Full")
    assert estimate(shape, full).optimizer == 3 * 4 * total_parameters(shape)
    assert estimate(shape, replace(full, number_bytes=4)).optimizer == 2 * 4 * total_parameters(shape)


def test_weights_of_an_8b_model() -> None:
    shape = read_shape(LLAMA)
    assert shape is not None
    assert 15.0 < estimate(shape, load()).weights / GIB < 15.2  # 8.03e9 x 2 bytes and an adapter
    assert 5.2 < estimate(shape, load(adapter="QLoRA")).weights / GIB < 5.6  # torchtune's QLoRA 8B peaks at 7.4 GiB


@pytest.mark.parametrize(
    ("way", "processes", "more", "gib"),
    [
        (load(), 1, {}, 3 + 15.0),  # 8.03e9 x 2 bytes through host memory
        (load(), 4, {}, 4 * (3 + 15.0)),  # every process loads
        (load(number_bytes=4), 1, {}, 3 + 29.9),
        (load(adapter="QLoRA"), 1, {}, 3),  # onto its device, layer by layer
        (load(adapter="Full"), 1, {"writes_model": True}, 3 + 15.0 + 7.5),
        (load(adapter="Full"), 1, {"writes_model": True, "keeps_best": True}, 3 + 29.9 + 7.5),
    ],
)
def test_host_memory_of_an_8b_model_never_holds_the_optimizer(
    way: Load, processes: int, more: dict[str, bool], gib: float
) -> None:
    shape = read_shape(LLAMA)
    assert shape is not None
    found = host_bytes(shape, way, processes, **{"keeps_best": False, "writes_model": False} | more)
    assert found / GIB == pytest.approx(gib, abs=0.3)


@pytest.mark.parametrize(
    ("limits", "limit", "told"), [({"memory": "8Gi"}, 8, True), ({"memory": "32Gi"}, 32, False), ({}, 8, False)]
)
def test_a_limit_that_the_pod_may_exceed_beside_its_accelerator_is_told(
    limits: dict[str, str], limit: int, told: bool
) -> None:
    found = plan(LLAMA, facts=cpu(limit), pod={"resources": {"limits": limits}})
    assert found.feasible
    assert found.status.host_memory_bytes / GIB == pytest.approx(18, abs=0.3)
    assert (
        "pod.resources.limits.memory allows 8.0 GiB: if it ends as OOMKilled, set 21Gi" in found.status.message
    ) is told


def test_bitsandbytes_is_counted_where_it_is_loaded() -> None:
    shape = read_shape(SMOLLM2)
    assert shape is not None
    cpu_load = Load("cpu", 4, 1024, 512)
    overheads = [estimate(shape, replace(cpu_load, adapter=adapter)).overhead for adapter in ("LoRA", "QLoRA")]
    assert overheads[1] - overheads[0] == 100 * 2**20


def test_attention_document_by_document_repeats_keys_for_their_groups() -> None:
    shape = read_shape(LLAMA)
    assert shape is not None
    half, single = (estimate(shape, load(number_bytes=number)).activations for number in (2, 4))
    grouped = {"num_attention_heads": 32, "num_key_value_heads": 32}
    alone = read_shape(LLAMA | grouped)
    assert alone is not None
    assert single == estimate(alone, load(number_bytes=4)).activations, "as if every head had keys of its own"
    assert half < estimate(alone, load(number_bytes=2)).activations


def test_packs_come_down_by_halves_to_the_longest_row() -> None:
    assert packs(8192, 3000) == [8192, 4096, 3000]
    assert packs(8192, 100) == [8192, 4096, 2048, 1024, 512, 256]
    assert packs(2048, 9000) == [9000]


def test_an_administrators_price_counts() -> None:
    facts = {"groups": (NodeGroup("NVIDIA-A100-SXM4-80GB", 0, {}),)}
    own = [Accelerator(name="A100-80GB", memory_mib=81920, bf16_teraflops=312, price_per_hour=9)]
    cheap, dear = plan(LLAMA, facts=facts), plan(LLAMA, facts=facts | {"settings": PlanSettings(accelerators=own)})
    assert dear.status.price > cheap.status.price > 0
