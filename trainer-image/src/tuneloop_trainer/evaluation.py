"""Scores of a model on held-out rows: loss over the answers, and answers of its own compared with the references.

The same rows, in the same packs, for base and tuned model. Greedy decoding, so that scores can be repeated.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tuneloop_core.api.finetunejob import EvaluationSettings
from tuneloop_core.data.rows import read_row
from tuneloop_core.stages import Scores, Wire

from tuneloop_trainer.batches import pack
from tuneloop_trainer.encode import Encoder, Question
from tuneloop_trainer.model import TunedModel
from tuneloop_trainer.tokens import TokenStore

GENERATION_BATCH = {"cpu": 16, "cuda": 64}
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+")  # a CJK character is a word of its own

Tick = Callable[[float], None]  # told the share that is done; may raise to stop


class Evaluated(Wire):
    """Scores of one model and the answers it gave."""

    scores: Scores
    answers: list[str] = []


@dataclass
class HeldOut:
    """The held-out rows that are used, chosen once by the seed."""

    store: TokenStore
    rows_file: Path
    settings: EvaluationSettings
    seed: int
    chosen: list[int] = field(init=False)

    def __post_init__(self) -> None:
        order = np.random.default_rng([self.seed, 1]).permutation(len(self.store))
        self.chosen = sorted(order[: self.settings.max_samples].tolist())

    @property
    def tokens(self) -> int:
        """Tokens that a loss evaluation sees."""
        return int(self.store.lengths[self.chosen].sum())

    def questions(self, encoder: Encoder) -> list[Question]:
        """The prompts of the first ``generations`` chosen rows that ask something."""
        wanted = set(self.chosen)
        found: list[Question] = []
        with self.rows_file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                if len(found) == self.settings.generations:
                    break
                question = encoder.question(read_row(json.loads(line))) if number in wanted else None
                if question is not None:
                    found.append(question)
        return found


def evaluate(model: TunedModel, encoder: Encoder, held_out: HeldOut, capacity: int, tick: Tick) -> Evaluated:
    """Loss and perplexity over the chosen rows, exact match and ROUGE-L over the generated answers."""
    questions = held_out.questions(encoder)
    generation_cost = generation_tokens(questions, held_out.settings)
    share = held_out.tokens / max(1, held_out.tokens + generation_cost)
    loss = evaluation_loss(model, held_out, capacity, lambda done: tick(done * share))
    answers = list(_generate(model, encoder, held_out, questions, lambda done: tick(share + done * (1 - share))))
    scores = Scores(
        eval_loss=round(loss, 6),
        perplexity=round(math.exp(min(loss, 700.0)), 6),
        exact_match=_mean([float(exact(a, q.reference)) for a, q in zip(answers, questions, strict=True)]),
        rouge_l=_mean([rouge_l(a, q.reference) for a, q in zip(answers, questions, strict=True)]),
        samples=len(held_out.chosen),
        generations=len(answers),
    )
    return Evaluated(scores=scores, answers=answers)


@torch.no_grad()
def evaluation_loss(model: TunedModel, held_out: HeldOut, capacity: int, tick: Tick) -> float:
    """Mean cross-entropy in nats per trained token of the chosen rows."""
    store = held_out.store
    packs = pack(np.array(held_out.chosen), store.lengths, capacity, model.isolates)
    total, count = 0.0, 0
    for number, documents in enumerate(packs):
        loss, trained = model.loss([store.document(document) for document in documents])
        total, count = total + loss.item(), count + trained
        tick((number + 1) / len(packs))
    return total / max(1, count)


def generation_tokens(questions: list[Question], settings: EvaluationSettings) -> int:
    """What generating costs, in tokens of a forward pass: single tokens are several times dearer than packed ones."""
    return sum(len(question.ids) + 4 * settings.max_new_tokens for question in questions)


@torch.no_grad()
def _generate(
    model: TunedModel, encoder: Encoder, held_out: HeldOut, questions: list[Question], tick: Tick
) -> Iterator[str]:
    """Greedy answers, in the order of the questions."""
    size = GENERATION_BATCH[model.machine.device.type]
    order = sorted(range(len(questions)), key=lambda index: len(questions[index].ids))
    answers = [""] * len(questions)
    stops = stop_ids(model, encoder, held_out)
    with model.generating():
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            texts = _answer(model, encoder, [questions[i].ids for i in batch], stops, held_out.settings.max_new_tokens)
            for index, text in zip(batch, texts, strict=True):
                answers[index] = text
            tick((start + len(batch)) / len(order))
    yield from answers


def _answer(
    model: TunedModel, encoder: Encoder, prompts: list[list[int]], stops: list[int], max_new_tokens: int
) -> list[str]:
    from transformers import GenerationConfig  # noqa: PLC0415 - slow to import

    longest = max(map(len, prompts))
    pad = stops[0] if stops else 0
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=pad, eos_token_id=stops or None
    )
    device = model.machine.device
    out = model.causal.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings)
    return [encoder.tokenizer.decode(row, skip_special_tokens=True).strip() for row in out[:, longest:].tolist()]


def stop_ids(model: TunedModel, encoder: Encoder, held_out: HeldOut) -> list[int]:
    """Tokens that end an answer: what model and tokenizer name, and what ends the answers in the data."""
    named = model.causal.generation_config.eos_token_id
    found = list(named) if isinstance(named, list) else [named]
    found.append(encoder.tokenizer.eos_token_id)
    special = set(encoder.tokenizer.all_special_ids)
    for number in held_out.chosen[:1]:
        document = held_out.store.document(number)
        last = int(document.ids[document.trained.nonzero()[0][-1]])
        found += [last] if last in special else []
    return sorted({int(token) for token in found if token is not None})


# ---- comparing texts -----------------------------------------------------------------------------------------------


def exact(answer: str, reference: str) -> bool:
    """Equal but for white space."""
    return answer.split() == reference.split()


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L F1 (Lin 2004): the longest common subsequence of words, 0 to 1; case is ignored."""
    left, right = WORD.findall(answer.lower()), WORD.findall(reference.lower())
    common = _common_subsequence(left, right)
    return 2 * common / (len(left) + len(right)) if common else 0.0


def _common_subsequence(left: list[str], right: list[str]) -> int:
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for index, other in enumerate(right, start=1):
            above = row[index]
            row[index] = diagonal + 1 if word == other else max(above, row[index - 1])
            diagonal = above
    return row[-1]


def _mean(values: list[float]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None
