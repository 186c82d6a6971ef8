"""What is learnt from an example, and how well it was: one class an objective, all used alike by loop and evaluation.

An example is a row of the data: one document, or two where answers are compared. A step's loss is the sum over its
examples, over what ``begin`` says. Knows nothing of steps, checkpoints or files.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from tuneloop_core.stages import Scores

from tuneloop_trainer.loss import summed_loss
from tuneloop_trainer.model import TunedModel
from tuneloop_trainer.preferences import dpo_losses, kto_losses, log_probabilities, loss_of_answers
from tuneloop_trainer.tokens import Document, Examples

Tick = Callable[[float], None]  # told the share that is done; may raise to stop
Packs = Sequence[Sequence[int]]  # numbers of examples
Documents = Callable[[int], list[Document]]  # those that an example's losses and scores need
Lengths = npt.NDArray[np.int64]
References = npt.NDArray[np.float64]  # (examples, 2): log-probabilities in nats by the base model


class Objective(Protocol):
    """What a training run optimises, on one side of the data."""

    examples: Examples

    def measured_lengths(self, numbers: Sequence[int]) -> Lengths:
        """Tokens of what is measured of each example before a step; empty where nothing is."""
        ...

    def measure(self, numbers: Sequence[int]) -> float:
        """That, without gradient, summed over a pack of examples."""
        ...

    def begin(self, numbers: Sequence[int], measured: float) -> float:
        """Prepare a step over these examples; what the sum of their losses is divided by."""
        ...

    def loss(self, numbers: Sequence[int]) -> torch.Tensor:
        """Summed loss of a pack of examples, with its gradient."""
        ...

    def scores(self, packs: Packs, tick: Tick) -> Scores:
        """Scores of the model as it is now over all examples of the packs."""
        ...


class Unmeasured:
    """An objective that need not know where the model is before a step."""

    def measured_lengths(self, _numbers: Sequence[int]) -> Lengths:
        """None."""
        return np.empty(0, dtype=np.int64)

    def measure(self, _numbers: Sequence[int]) -> float:
        """Never asked."""
        return 0.0


@dataclass
class Supervised(Unmeasured):
    """Cross-entropy of the answers' tokens."""

    model: TunedModel
    examples: Examples

    def begin(self, numbers: Sequence[int], _measured: float = 0.0) -> float:
        """Trained tokens of the step."""
        return max(1, sum(int(document.trained[1:].sum()) for document in self.examples.flat(numbers)))

    def loss(self, numbers: Sequence[int]) -> torch.Tensor:
        """Nats over the trained tokens."""
        return self.model.loss(self.examples.flat(numbers))[0]

    @torch.no_grad()
    def scores(self, packs: Packs, tick: Tick) -> Scores:
        """Loss in nats per trained token, and perplexity."""
        total, count = 0.0, 0
        for number, pack in enumerate(packs):
            loss, trained = self.model.loss(self.examples.flat(pack))
            total, count = total + loss.item(), count + trained
            tick((number + 1) / len(packs))
        mean = total / max(1, count)
        return Scores(eval_loss=round(mean, 6), perplexity=round(math.exp(min(mean, 700.0)), 6), samples=_count(packs))


@dataclass
class Preferred(Unmeasured):
    """DPO: of two answers, the liked one should gain more over the base model than the other."""

    model: TunedModel
    examples: Examples
    references: References
    beta: float

    def begin(self, numbers: Sequence[int], _measured: float = 0.0) -> float:
        """Pairs of the step."""
        return len(numbers)

    def loss(self, numbers: Sequence[int]) -> torch.Tensor:
        """Summed over pairs."""
        before = torch.from_numpy(self.references[list(numbers)]).flatten()
        return loss_of_answers(
            self.model, self.examples.flat(numbers), lambda found: self._losses(found - before).sum()
        )

    def scores(self, packs: Packs, tick: Tick) -> Scores:
        """Loss of a pair; share of pairs whose liked answer has the higher reward, and by how much on average."""
        ratios = _ratios(self.model, self.examples.documents, self.references, packs, tick)
        margins = self.beta * (ratios[:, 0] - ratios[:, 1])
        return Scores(
            eval_loss=_rounded(self._losses(ratios.flatten()).mean()),
            reward_accuracy=_rounded((margins > 0).double().mean()),
            reward_margin=_rounded(margins.mean()),
            samples=_count(packs),
        )

    def _losses(self, ratios: torch.Tensor) -> torch.Tensor:
        return dpo_losses(ratios.view(-1, 2), self.beta)


@dataclass
class Liked:
    """KTO: liked answers should gain over the base model, disliked ones lose, each against how far the model moved.

    How far is measured on each step's prompts with answers to other prompts, as the paper has it; over the whole step,
    where TRL takes a microbatch. ``partners`` names, for each example, the one whose answer it borrows.
    """

    model: TunedModel
    examples: Examples
    references: References  # of the answer, and of the borrowed one
    liked: npt.NDArray[np.bool_]
    partners: npt.NDArray[np.int64]
    beta: float
    _divergence: float = field(default=0.0, init=False)

    def measured_lengths(self, numbers: Sequence[int]) -> Lengths:
        """Of prompts with borrowed answers."""
        return np.array([len(document.ids) for document in self._borrowing(numbers)], dtype=np.int64)

    def measure(self, numbers: Sequence[int]) -> float:
        """Nats by which borrowed answers gained over the base model."""
        found = log_probabilities(self.model, self._borrowing(numbers))
        return float((found - torch.from_numpy(self.references[list(numbers), 1])).sum())

    def begin(self, numbers: Sequence[int], measured: float) -> float:
        """Take how far the model is from its base; answers of the step."""
        self._divergence = max(0.0, measured / len(numbers))
        return len(numbers)

    def loss(self, numbers: Sequence[int]) -> torch.Tensor:
        """Summed over answers."""
        before = torch.from_numpy(self.references[list(numbers), 0])
        return loss_of_answers(
            self.model, self.examples.flat(numbers), lambda found: self._losses(found - before, numbers).sum()
        )

    def scores(self, packs: Packs, tick: Tick) -> Scores:
        """Loss of an answer; share of answers whose reward is on the side of their label, and the mean distance."""
        ratios = _ratios(self.model, self._documents, self.references, packs, tick)
        numbers = [number for pack in packs for number in pack]
        self._divergence = max(0.0, float(ratios[:, 1].mean()))
        rewards, liked = self.beta * (ratios[:, 0] - self._divergence), self._labels(numbers)
        return Scores(
            eval_loss=_rounded(self._losses(ratios[:, 0], numbers).mean()),
            reward_accuracy=_rounded(((rewards > 0) == liked).double().mean()),
            reward_margin=_rounded(rewards[liked].mean() - rewards[~liked].mean())
            if 0 < liked.sum() < len(liked)
            else None,
            samples=len(numbers),
        )

    @property
    def _documents(self) -> Documents:
        return with_borrowed(self.examples, self.partners)

    def _losses(self, ratios: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        return kto_losses(ratios, self._labels(numbers), self._divergence, self.beta)

    def _labels(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.from_numpy(self.liked[list(numbers)])

    def _borrowing(self, numbers: Sequence[int]) -> list[Document]:
        """Each prompt with the answer that it borrows."""
        documents = self._documents
        return [documents(number)[1] for number in numbers]


@dataclass
class Classified(Unmeasured):
    """Cross-entropy of the text's class, seen from its last token."""

    model: TunedModel
    examples: Examples
    classes: npt.NDArray[np.int64]  # of each example

    def begin(self, numbers: Sequence[int], _measured: float = 0.0) -> float:
        """Texts of the step."""
        return len(numbers)

    def loss(self, numbers: Sequence[int]) -> torch.Tensor:
        """Nats, summed over texts."""
        states = self.model.last(self.examples.flat(numbers))
        return summed_loss(states, self._classes(numbers).to(states.device), self.model.head)

    @torch.no_grad()
    def scores(self, packs: Packs, tick: Tick) -> Scores:
        """Loss in nats per text, share of right classes, and F1 averaged over classes."""
        total, found = 0.0, []
        for number, pack in enumerate(packs):
            logits = self.model.head.logits(self.model.last(self.examples.flat(pack))).cpu()
            total += torch.nn.functional.cross_entropy(logits, self._classes(pack), reduction="sum").item()
            found.append(logits.argmax(dim=1))
            tick((number + 1) / len(packs))
        guessed, right = torch.cat(found), self._classes([number for pack in packs for number in pack])
        return Scores(
            eval_loss=round(total / len(right), 6),
            accuracy=_rounded((guessed == right).double().mean()),
            f1=round(macro_f1(guessed.tolist(), right.tolist()), 6),
            samples=len(right),
        )

    def _classes(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.from_numpy(self.classes[list(numbers)])


def macro_f1(guessed: list[int], right: list[int]) -> float:
    """F1 of each class that was guessed or right, averaged without weights: scikit-learn's ``average="macro"``."""
    pairs, scores = list(zip(guessed, right, strict=True)), []
    for each in {*guessed, *right}:
        hits = sum(guess == truth == each for guess, truth in pairs)
        scores.append(2 * hits / (guessed.count(each) + right.count(each)))
    return sum(scores) / len(scores)


def with_borrowed(examples: Examples, others: npt.NDArray[np.int64]) -> Documents:
    """For each example its document, and its prompt with the answer of its partner."""

    def documents(number: int) -> list[Document]:
        (own,), (other,) = examples.documents(number), examples.documents(int(others[number]))
        return [own, borrowed(own, other)]

    return documents


def borrowed(own: Document, other: Document) -> Document:
    """A prompt with the answer to another."""
    start, begins = int(own.trained.argmax()), int(other.trained.argmax())
    ids = np.concatenate([own.ids[:start], other.ids[begins:]])
    return Document(ids, np.concatenate([own.trained[:start], other.trained[begins:]]))


def partners(count: int, seed: int) -> npt.NDArray[np.int64]:
    """For each of ``count`` examples another one; all are taken once. A single example is its own."""
    order = np.random.default_rng([seed, 2]).permutation(count)
    found = np.empty(count, dtype=np.int64)
    found[order] = np.roll(order, 1)
    return found


def reference(model: TunedModel, documents: Documents, count: int, numbers: Iterable[int], tick: Tick) -> References:
    """Log-probabilities by the model as it is now, of the two documents of each numbered example; NaN for others."""
    found, wanted = np.full((count, 2), np.nan), sorted(set(numbers))
    for done, number in enumerate(wanted):
        found[number] = log_probabilities(model, documents(number)).numpy()
        tick((done + 1) / len(wanted))
    return found


def _ratios(model: TunedModel, documents: Documents, references: References, packs: Packs, tick: Tick) -> torch.Tensor:
    """(examples, 2): log-probabilities less the reference's, in the order of the packs."""
    found = []
    for number, pack in enumerate(packs):
        flat = [document for example in pack for document in documents(example)]
        found.append(log_probabilities(model, flat).view(-1, 2) - torch.from_numpy(references[list(pack)]))
        tick((number + 1) / len(packs))
    return torch.cat(found)


def _count(packs: Packs) -> int:
    return sum(map(len, packs))


def _rounded(value: torch.Tensor) -> float:
    return round(float(value), 6)
