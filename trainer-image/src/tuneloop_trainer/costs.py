"""What the train stage computes, by phase, in tokens of a forward pass: how far it is and how long it still takes.

Pure; the plan's own estimate, before a pod is made, is tuneloop_core.plan.cost.
"""

from dataclasses import dataclass

REFERENCES = {"SFT": 0, "DPO": 1, "KTO": 2}
"""How often the base sees a row before training: its answers, and with KTO a borrowed one of about its length."""
TRAINED = 3
"""Backward costs twice what forward does."""


@dataclass(frozen=True)
class Costs:
    """Tokens of a forward pass."""

    training_rows: float = 0  # that the base sees before training, where answers are compared
    held_out_rows: float = 0
    scored: float = 0  # held-out rows and the answers that are generated, of one model
    asked: float = 0  # evaluation.tasks, of one model
    trained: float = 0  # of all steps

    @classmethod
    def of(  # noqa: PLR0913 - each is a count of its own
        cls, objective: str, used: float, held_out: float, generated: float, asked: float, seen: float
    ) -> "Costs":
        """``used`` training rows are compared with the base, ``seen`` are trained on in all epochs."""
        times = REFERENCES[objective]
        return cls(times * used, times * held_out, held_out + generated, asked, TRAINED * seen)

    @property
    def phases(self) -> dict[str, float]:
        """Of each phase that takes time."""
        evaluation = self.scored + self.asked
        base = self.training_rows + self.held_out_rows + evaluation
        return {"BaseEvaluation": base, "Training": self.trained, "TunedEvaluation": evaluation}

    @property
    def references(self) -> tuple[float, float]:
        """Where in the base's phase its view of the training rows ends, and that of all rows."""
        whole = max(1.0, self.phases["BaseEvaluation"])
        return self.training_rows / whole, (self.training_rows + self.held_out_rows) / whole

    @property
    def held_share(self) -> float:
        """Of an evaluation, what is not evaluation.tasks."""
        return self.scored / max(1.0, self.scored + self.asked)
