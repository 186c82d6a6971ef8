"""Scores of a model on held-out rows: loss over the answers, and answers of its own compared with the references.

The same rows, in the same packs, for base and tuned model. Greedy decoding, so that scores can be repeated.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from tuneloop_core.api.finetunejob import EvaluationSettings
from tuneloop_core.constants import GENERATED_TOKEN_COST
from tuneloop_core.data.rows import read_row
from tuneloop_core.stages import Scores, Wire

from tuneloop_trainer.batches import pack
from tuneloop_trainer.encode import Encoder, Question
from tuneloop_trainer.learning import Side
from tuneloop_trainer.model import TunedModel
from tuneloop_trainer.objectives import Objective, Tick

GENERATION_BATCH = {"cpu": 16, "cuda": 64}
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+")  # a CJK character is a word of its own


class Evaluated(Wire):
    """Scores of one model and the answers it gave."""

    scores: Scores
    answers: list[str] = []


@dataclass
class HeldOut:
    """The held-out rows that are used, chosen once by the seed."""

    side: Side
    settings: EvaluationSettings
    seed: int
    capacity: int  # tokens a pack
    chosen: list[int] = field(init=False)

    def __post_init__(self) -> None:
        order = np.random.default_rng([self.seed, 1]).permutation(len(self.side.examples))
        self.chosen = sorted(order[: self.settings.max_samples].tolist())

    @property
    def tokens(self) -> int:
        """Tokens that a loss evaluation sees."""
        return int(self.side.examples.lengths[self.chosen].sum())

    def questions(self, encoder: Encoder) -> list[Question]:
        """The prompts of the first ``generations`` chosen rows that ask something."""
        wanted = set(self.chosen)
        found: list[Question] = []
        with self.side.rows.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                if len(found) == self.settings.generations:
                    break
                question = encoder.question(read_row(json.loads(line))) if number in wanted else None
                if question is not None:
                    found.append(question)
        return found

    def packs(self, packing: bool) -> list[list[int]]:
        """The chosen rows as they are computed."""
        return pack(np.array(self.chosen), self.side.examples.lengths, self.capacity, packing)


def evaluate(model: TunedModel, encoder: Encoder, held_out: HeldOut, objective: Objective, tick: Tick) -> Evaluated:
    """The objective's scores over the chosen rows, exact match and ROUGE-L over the generated answers."""
    questions = held_out.questions(encoder)
    generation_cost = generation_tokens(questions, held_out.settings)
    share = held_out.tokens / max(1, held_out.tokens + generation_cost)
    scores = objective.scores(held_out.packs(model.isolates), lambda done: tick(done * share))
    answers = list(_generate(model, encoder, held_out, questions, lambda done: tick(share + done * (1 - share))))
    compared = {
        "exact_match": _mean([float(exact(a, q.reference)) for a, q in zip(answers, questions, strict=True)]),
        "rouge_l": _mean([rouge_l(a, q.reference) for a, q in zip(answers, questions, strict=True)]),
        "generations": len(answers),
    }
    return Evaluated(scores=scores.model_copy(update=compared), answers=answers)


def evaluation_loss(model: TunedModel, objective: Objective, held_out: HeldOut, tick: Tick) -> float:
    """The objective's loss over the chosen rows alone."""
    loss = model.gathered(lambda: objective.scores(held_out.packs(model.isolates), tick)).eval_loss
    return math.inf if loss is None else loss


def generation_tokens(questions: list[Question], settings: EvaluationSettings) -> int:
    """What generating costs, in tokens of a forward pass: single tokens are several times dearer than packed ones."""
    return sum(len(question.ids) + GENERATED_TOKEN_COST * settings.max_new_tokens for question in questions)


@torch.no_grad()
def _generate(
    model: TunedModel, encoder: Encoder, held_out: HeldOut, questions: list[Question], tick: Tick
) -> Iterator[str]:
    """Greedy answers, in the order of the questions."""
    if not questions:
        return
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
    out = model.causal.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        generation_config=settings,
        synced_gpus=model.root is not None,  # no process ends an answer while another goes on
    )
    return [encoder.tokenizer.decode(row, skip_special_tokens=True).strip() for row in out[:, longest:].tolist()]


def stop_ids(model: TunedModel, encoder: Encoder, held_out: HeldOut) -> list[int]:
    """Tokens that end an answer: what model and tokenizer name, and what ends the answers in the data."""
    named = model.causal.generation_config.eos_token_id
    found = list(named) if isinstance(named, list) else [named]
    found.append(encoder.tokenizer.eos_token_id)
    special = set(encoder.tokenizer.all_special_ids)
    for number in held_out.chosen[:1]:
        document = held_out.side.examples.documents(number)[0]
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
