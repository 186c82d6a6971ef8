"""The objectives of one run: what is learnt on the training rows, and the same measured on the held-out ones.

Where answers are compared with the base model's view of them, that view is computed here once, before training, and
kept beside the checkpoints: resuming must not ask a model that has moved. Never trains.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tuneloop_core.api.finetunejob import Method
from tuneloop_core.api.formats import parse_decimal

from tuneloop_trainer.files import write_atomic
from tuneloop_trainer.model import TunedModel
from tuneloop_trainer.objectives import (
    Classified,
    Documents,
    Liked,
    Objective,
    Preferred,
    References,
    Supervised,
    Tick,
    partners,
    reference,
    with_borrowed,
)
from tuneloop_trainer.peers import ALONE, Peers
from tuneloop_trainer.tokens import Examples, TokenStore


@dataclass(frozen=True)
class Side:
    """One side of the data as check left it: its examples and the rows they came from."""

    name: str  # train | validation
    examples: Examples
    rows: Path

    @classmethod
    def read(cls, data: Path, name: str, method: Method) -> "Side":
        """The side in the folder of normalised data; a preference row is two documents."""
        store = TokenStore(data / name)
        return cls(name, Examples(store, 2 if method.objective == "DPO" else 1), data / f"{name}.jsonl")

    def labels(self) -> list[int]:
        """The label of each row: of an answer 1 for liked, of a text the number of its class."""
        with self.rows.open(encoding="utf-8") as lines:
            return [int(json.loads(line)["label"]) for line in lines]


@dataclass(frozen=True)
class Learning:
    """Makes the objectives of a run; ``folder`` keeps what the base model says, for this ``digest`` of the input.

    Of several processes each computes it where the leader has not kept it, and only the leader keeps it.
    """

    method: Method
    seed: int
    folder: Path
    digest: str
    peers: Peers = ALONE

    def objective(self, model: TunedModel, side: Side, numbers: Sequence[int], tick: Tick) -> Objective:
        """The objective on a side of which these examples are used; the model must still be the base."""
        examples, beta = side.examples, parse_decimal(self.method.beta)
        if self.method.classifies:
            return Classified(model, examples, np.array(side.labels(), dtype=np.int64))
        if self.method.objective == "DPO":
            pairs = self._base_view(model, side, examples.documents, numbers, tick)
            return Preferred(model, examples, pairs, beta)
        if self.method.objective == "KTO":
            others, liked = partners(len(examples), self.seed), np.array(side.labels(), dtype=np.bool_)
            answers = self._base_view(model, side, with_borrowed(examples, others), numbers, tick)
            return Liked(model, examples, answers, liked, others, beta)
        return Supervised(model, examples)

    def _base_view(
        self, model: TunedModel, side: Side, documents: Documents, numbers: Sequence[int], tick: Tick
    ) -> References:
        path = self.folder / f"reference-{side.name}-{self.digest.removeprefix('sha256:')[:16]}.npy"
        if self.peers.tell(path.is_file()):
            kept: References = np.load(path, allow_pickle=False)
            return kept
        with model.as_base():
            found = model.gathered(lambda: reference(model, documents, len(side.examples), numbers, tick))
        stream = io.BytesIO()
        np.save(stream, found, allow_pickle=False)
        if self.peers.leads:
            write_atomic(path, stream.getvalue())
        return found
