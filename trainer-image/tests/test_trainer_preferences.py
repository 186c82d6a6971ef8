"""DPO and KTO give TRL's losses and gradients, computed by the installed TRL's own trainers on the tiny model."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from tuneloop_core.api.finetunejob import Method

from tuneloop_trainer.machine import Machine
from tuneloop_trainer.model import TunedModel, load_model
from tuneloop_trainer.preferences import dpo_losses, kto_losses, log_probabilities, loss_of_answers
from tuneloop_trainer.tokens import Document

CPU = Machine(torch.device("cpu"), torch.float32, 1)
BETA = 0.3
PROMPTS = [[5, 6, 7, 8, 9], [20, 21, 22], [30, 31, 32, 33]]
LIKED = [[40, 41, 42], [50, 51], [60, 61, 62, 63, 64]]
DISLIKED = [[43, 44], [52, 53, 54, 55], [65, 66]]


def document(prompt: list[int], answer: list[int]) -> Document:
    trained = [0] * len(prompt) + [1] * len(answer)
    return Document(np.array(prompt + answer, dtype=np.int32), np.array(trained, dtype=np.uint8))


@pytest.fixture
def model(tiny: Path) -> TunedModel:
    return load_model(tiny, CPU, Method(adapter="None"), seed=1)


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """The model after some training: the reference is the one before."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def trl_trainer(kind: Any, config: Any, tiny: Path, folder: Path, rows: list[dict[str, Any]]) -> Any:
    plain = AutoModelForCausalLM.from_pretrained(tiny)
    reference = copy.deepcopy(plain)
    arguments = config(
        output_dir=str(folder), beta=BETA, use_cpu=True, bf16=False, report_to=[], disable_dropout=True,
        per_device_train_batch_size=len(rows), gradient_checkpointing=False,
    )  # fmt: skip
    texts = Dataset.from_list(rows)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    return kind(
        model=moved(plain), ref_model=reference, args=arguments, train_dataset=texts, processing_class=tokenizer
    )


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_equal(ours: TunedModel, value: torch.Tensor, theirs: torch.nn.Module, loss: torch.Tensor) -> None:
    assert value.item() == pytest.approx(loss.item(), rel=1e-5)
    left, right = gradients(ours.module), gradients(theirs)
    assert set(left) == set(right)
    for name, gradient in left.items():
        assert torch.allclose(gradient, right[name], rtol=1e-3, atol=1e-5), name


@pytest.mark.filterwarnings("ignore")
def test_dpo_is_trls(model: TunedModel, tiny: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * len(PROMPTS)
    trainer = trl_trainer(DPOTrainer, DPOConfig, tiny, tmp_path, rows)
    examples = [
        {"prompt_ids": prompt, "chosen_ids": liked, "rejected_ids": disliked}
        for prompt, liked, disliked in zip(PROMPTS, LIKED, DISLIKED, strict=True)
    ]
    theirs = trainer._compute_loss(trainer.model, trainer.data_collator(examples), return_outputs=False)
    theirs.backward()

    pairs = [
        [document(prompt, liked), document(prompt, disliked)]
        for prompt, liked, disliked in zip(PROMPTS, LIKED, DISLIKED, strict=True)
    ]
    references = [log_probabilities(model, pair) for pair in pairs]
    moved(model.module)
    ours = torch.zeros((), dtype=torch.float64)
    for pair, reference in zip(pairs, references, strict=True):
        loss = loss_of_answers(model, pair, lambda found, r=reference: dpo_losses((found - r)[None], BETA).sum())
        (loss / len(pairs)).backward()
        ours += loss.item() / len(pairs)
    assert_equal(model, ours, trainer.model, theirs)


@pytest.mark.filterwarnings("ignore")
def test_kto_is_trls(model: TunedModel, tiny: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b", "label": True}] * len(PROMPTS)
    trainer = trl_trainer(KTOTrainer, KTOConfig, tiny, tmp_path, rows)
    labels = [True, False, True]
    others = [LIKED[-1], *LIKED[:-1]]
    examples = [
        {"prompt_ids": prompt, "completion_ids": answer, "KL_completion_ids": other, "label": label}
        for prompt, answer, other, label in zip(PROMPTS, LIKED, others, labels, strict=True)
    ]
    theirs = trainer._compute_loss(trainer.model, trainer.data_collator(examples), return_outputs=False)
    theirs.backward()

    answers = [document(prompt, answer) for prompt, answer in zip(PROMPTS, LIKED, strict=True)]
    mismatched = [document(prompt, other) for prompt, other in zip(PROMPTS, others, strict=True)]
    references, before = log_probabilities(model, answers), log_probabilities(model, mismatched)
    moved(model.module)
    divergence = max(0.0, float((log_probabilities(model, mismatched) - before).mean()))
    liked = torch.tensor(labels)
    ours = loss_of_answers(model, answers, lambda found: kto_losses(found - references, liked, divergence, BETA).mean())
    ours.backward()
    assert divergence > 0
    assert_equal(model, ours, trainer.model, theirs)
