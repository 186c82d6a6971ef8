"""The parts that must be exact: isolation of packed documents, the loss, the schedule, the optimizer."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GemmaConfig, GemmaForCausalLM, MistralConfig, MistralForCausalLM
from tuneloop_core.api.finetunejob import LoRASettings, Method

from tuneloop_trainer import attention
from tuneloop_trainer.batches import Schedule, pack
from tuneloop_trainer.lora import fuse
from tuneloop_trainer.loss import Head, summed_loss
from tuneloop_trainer.machine import Machine
from tuneloop_trainer.model import TunedModel, load_model, shared_beginning, trained_positions, verify
from tuneloop_trainer.optimizer import MasterAdam, learning_rate
from tuneloop_trainer.tokens import Document

CPU = Machine(torch.device("cpu"), torch.float32, 1)


def document(length: int, seed: int, vocabulary: int = 512) -> Document:
    random = np.random.default_rng(seed)
    trained = np.zeros(length, dtype=np.uint8)
    trained[length // 2 :] = 1
    return Document(random.integers(3, vocabulary, length, dtype=np.int32), trained)


@pytest.fixture
def model(tiny: Path) -> TunedModel:
    tuned = load_model(tiny, CPU, Method(lora=LoRASettings(rank=4, alpha=8)), seed=1)
    torch.manual_seed(0)
    for name, parameter in tuned.parameters.items():
        if "lora_B" in name:  # zero at first: an adapter that does nothing would prove nothing
            torch.nn.init.normal_(parameter, std=0.1)
    return tuned


# ---- packing -------------------------------------------------------------------------------------------------------


def test_packed_documents_give_the_logits_of_separate_ones(model: TunedModel, tiny: Path) -> None:
    documents = [document(length, seed) for seed, length in enumerate((7, 40, 1, 23))]
    with torch.no_grad():
        together = model.head.logits(model.hidden(documents))
        apart = [model.head.logits(model.hidden([each])) for each in documents]
        assert torch.allclose(together, torch.cat(apart), atol=1e-4)
        plain = AutoModelForCausalLM.from_pretrained(tiny, attn_implementation="eager")
        with model.as_base():
            ours = model.head.logits(model.hidden(documents))
        theirs = [plain(torch.from_numpy(each.ids.astype("int64")).unsqueeze(0)).logits[0] for each in documents]
        assert torch.allclose(ours, torch.cat(theirs), atol=1e-4)


def test_a_shared_beginning_changes_neither_loss_nor_gradient(model: TunedModel) -> None:
    beginning = document(17, 9).ids
    documents = []
    for seed, length in enumerate((12, 30, 3)):
        rest = document(length, seed)
        trained = np.concatenate([np.zeros(17, dtype=np.uint8), rest.trained])
        documents.append(Document(np.concatenate([beginning, rest.ids]), trained))
    assert shared_beginning(documents) == 17

    def outcome(shares: bool) -> list[torch.Tensor]:
        model.module.zero_grad()
        model.shares = shares
        loss, count = model.loss(documents)
        loss.backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters.values() if parameter.grad is not None]
        return [loss.detach(), torch.tensor(count), *gradients]

    for together, apart in zip(outcome(shares=True), outcome(shares=False), strict=True):
        assert torch.allclose(together, apart, rtol=1e-4, atol=1e-3)


def test_what_predicts_a_trained_token_is_never_shared() -> None:
    ids, other = np.array([5, 6, 7, 8], dtype=np.int32), np.array([5, 6, 7, 9], dtype=np.int32)
    late, early = np.array([0, 0, 0, 1], dtype=np.uint8), np.array([0, 1, 1, 1], dtype=np.uint8)
    assert shared_beginning([Document(ids, late), Document(other, late)]) == 2
    assert shared_beginning([Document(ids, late), Document(other, early)]) == 0
    assert shared_beginning([Document(ids, late)]) == 0


def test_gradients_of_a_pack_are_the_sum_of_those_of_its_documents(model: TunedModel) -> None:
    documents = [document(30, 1), document(12, 2)]

    def gradients(packs: list[list[Document]]) -> list[torch.Tensor]:
        model.module.zero_grad()
        for each in packs:
            model.loss(each)[0].backward()
        return [parameter.grad.clone() for parameter in model.parameters.values() if parameter.grad is not None]

    for whole, parts in zip(gradients([documents]), gradients([[d] for d in documents]), strict=True):
        assert torch.allclose(whole, parts, atol=1e-4)


def test_a_sliding_window_is_kept(tmp_path: Path) -> None:
    config = MistralConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8,
    )  # fmt: skip
    torch.manual_seed(0)
    plain = MistralForCausalLM(config).eval()
    plain.save_pretrained(tmp_path)
    tuned = load_model(tmp_path, CPU, Method(lora=LoRASettings(rank=2)), seed=1)
    documents = [document(20, 1, 128), document(5, 2, 128)]
    verify(tuned, [document(40, 3, 128), document(50, 4, 128)])
    assert tuned.shares
    with torch.no_grad():
        ours = tuned.head.logits(tuned.hidden(documents))
        plain.set_attn_implementation("eager")
        theirs = [plain(torch.from_numpy(each.ids.astype("int64")).unsqueeze(0)).logits[0] for each in documents]
    assert torch.allclose(ours, torch.cat(theirs), atol=1e-4)


def test_every_model_is_verified_before_training(model: TunedModel, tmp_path: Path) -> None:
    verify(model, [document(30, 1), document(20, 2)])
    assert model.isolates
    assert model.shares
    config = GemmaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    GemmaForCausalLM(config).save_pretrained(tmp_path)
    gemma = load_model(tmp_path, CPU, Method(lora=LoRASettings(rank=2)), seed=1)
    verify(gemma, [document(30, 1, 128), document(20, 2, 128)])
    assert gemma.causal.config._attn_implementation == attention.NAME


# ---- LoRA ----------------------------------------------------------------------------------------------------------


def test_the_fused_layer_gives_pefts_output_and_gradients() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(12, 20), torch.nn.SiLU(), torch.nn.Linear(20, 7, bias=False))
    peft = get_peft_model(net, LoraConfig(r=3, lora_alpha=6, target_modules=["0", "2"], init_lora_weights=False))
    x = torch.randn(2, 5, 12, requires_grad=True)

    def outcome() -> list[torch.Tensor]:
        peft.zero_grad()
        x.grad = None
        out = peft(x)
        out.square().sum().backward()
        return [out.detach(), x.grad, *(p.grad.clone() for p in peft.parameters() if p.grad is not None)]

    theirs = outcome()
    assert fuse(peft) == 2
    for ours, wanted in zip(outcome(), theirs, strict=True):
        assert torch.allclose(ours, wanted, atol=1e-5)
    with peft.disable_adapter():
        bare = torch.nn.Sequential(net[0].base_layer, net[1], net[2].base_layer)
        assert torch.allclose(peft(x), bare(x))


def test_layers_that_are_not_plain_keep_pefts_forward() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 4))
    assert fuse(get_peft_model(net, LoraConfig(r=2, target_modules=["0"], use_dora=True))) == 0


# ---- loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "softcap", "bias"), [(1.0, 0.0, False), (0.5, 0.0, True), (1.0, 5.0, False), (2.0, 3.0, True)]
)
def test_chunked_loss_and_gradient_equal_torch(
    monkeypatch: pytest.MonkeyPatch, scale: float, softcap: float, bias: bool
) -> None:
    monkeypatch.setattr("tuneloop_trainer.loss.CHUNK_BYTES", {"cpu": 97 * 4 * 3})  # three rows a chunk
    torch.manual_seed(0)
    head = Head(torch.randn(97, 16), torch.randn(97) if bias else None, scale, softcap)
    hidden, targets = torch.randn(10, 16), torch.randint(97, (10,))
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    loss = summed_loss(ours, targets, head)
    (loss / 7).backward()
    expected = torch.nn.functional.cross_entropy(head.logits(theirs), targets, reduction="sum")
    (expected / 7).backward()
    assert torch.allclose(loss.float(), expected, rtol=1e-5)
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)


def test_no_document_is_asked_for_the_first_token_of_the_next() -> None:
    first = Document(np.array([5, 6, 7], dtype=np.int32), np.array([1, 1, 0], dtype=np.uint8))
    second = Document(np.array([8, 9], dtype=np.int32), np.array([1, 1], dtype=np.uint8))
    positions, targets = trained_positions([first, second])
    assert (positions.tolist(), targets.tolist()) == ([0, 3], [6, 9])


# ---- schedule ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "tokens_per_step"), [(1, 10), (7, 50), (100, 300), (50, 1), (64, 10**6)])
def test_each_epoch_sees_every_document_once_in_even_steps(count: int, tokens_per_step: int) -> None:
    lengths = np.random.default_rng(0).integers(5, 120, count)
    schedule = Schedule(lengths, tokens_per_step, epochs=2, max_steps=0, seed=3)
    for epoch in range(2):
        first = epoch * schedule.steps_per_epoch
        steps = [schedule.documents(first + step) for step in range(schedule.steps_per_epoch)]
        assert all(len(step) for step in steps)
        assert sorted(np.concatenate(steps).tolist()) == list(range(count))
    assert schedule.total_steps == 2 * schedule.steps_per_epoch


def test_steps_have_about_the_tokens_asked_for_and_epochs_differ() -> None:
    lengths = np.random.default_rng(0).integers(5, 120, 1000)
    schedule = Schedule(lengths, 2000, epochs=2, max_steps=0, seed=3)
    sums = [int(lengths[schedule.documents(step)].sum()) for step in range(schedule.total_steps)]
    assert all(1700 <= total <= 2300 for total in sums)
    assert schedule.documents(0).tolist() != schedule.documents(schedule.steps_per_epoch).tolist()
    assert schedule.documents(5).tolist() == Schedule(lengths, 2000, 2, 0, 3).documents(5).tolist()
    assert Schedule(lengths, 2000, 2, 9, 3).total_steps == 9


def test_packs_hold_every_document_once_and_are_nearly_full() -> None:
    lengths = np.random.default_rng(1).integers(5, 120, 200)
    packs = pack(np.arange(200), lengths, capacity=512, packing=True)
    assert sorted(number for each in packs for number in each) == list(range(200))
    sums = [int(lengths[each].sum()) for each in packs]
    assert max(sums) <= 512
    assert sum(sums) / (512 * len(packs)) > 0.95
    assert [len(each) for each in pack(np.arange(5), lengths, 512, packing=False)] == [1] * 5
    assert pack(np.array([0]), np.array([9999]), 512, packing=True) == [[0]]


# ---- optimizer -----------------------------------------------------------------------------------------------------


def test_the_optimizer_is_torchs_adamw_with_clipping() -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(4, 3)) for _ in range(2))
    optimizer = MasterAdam({"weight": ours})
    reference = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.0)
    for step in range(5):
        wanted = torch.randn(4, 3) * (step + 1)
        for parameter in (ours, theirs):
            (parameter * wanted).sum().backward()
        torch.nn.utils.clip_grad_norm_([theirs], 1.0)
        reference.step()
        reference.zero_grad()
        optimizer.step(0.1)
        assert ours.grad is None
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_small_updates_survive_in_bfloat16() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = MasterAdam({"weight": parameter})
    for _ in range(100):
        parameter.sum().backward()
        optimizer.step(1e-4)  # far below what bfloat16 can add to 1
    assert parameter.tolist() == pytest.approx([0.99, 0.99], abs=0.004)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = MasterAdam({"weight": parameter})
    (parameter * math.inf).sum().backward()
    assert not math.isfinite(optimizer.step(0.1))
    assert parameter.tolist() == [1.0, 1.0]


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(step, 100, 1.0) for step in range(100)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates[3] == 1.0
    assert all(later < earlier for earlier, later in pairwise(rates[3:]))
    assert rates[-1] < 0.001


def test_gradients_are_kept_within_a_step_only() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = MasterAdam({"weight": parameter})
    (parameter * 3).sum().backward()
    within = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    optimizer.step(0.1)
    after = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    assert sorted(within) == ["first.weight", "gradient.weight", "second.weight", "weight.weight"]
    assert sorted(after) == ["first.weight", "second.weight", "weight.weight"]
    optimizer.load(within, 0)
    assert optimizer.state()["gradient.weight"].tolist() == [3.0, 3.0]
    optimizer.load(after, 1)
    assert "gradient.weight" not in optimizer.state()
    assert torch.equal(parameter.detach(), after["weight.weight"])
