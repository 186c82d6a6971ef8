"""Optimiser steps and tokens of a training run, from what the check stage counted. Never measures anything itself."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class StepPlan:
    """``steps`` optimiser steps over ``tokens`` tokens; ``message`` gives the arithmetic in words."""

    steps: int
    tokens: int
    message: str


def plan_steps(train_tokens: int, epochs: int, tokens_per_step: int, max_steps: int) -> StepPlan:
    """Steps = ceil(tokens of an epoch / tokens of a step) x epochs, at most ``max_steps`` where it is not 0.

    ``train_tokens`` counts tokens of all training rows after truncation. With packing the last step of an epoch is
    not full, hence the rounding up within an epoch.
    """
    per_epoch = max(1, math.ceil(train_tokens / tokens_per_step))
    steps = per_epoch * epochs
    words = f"{train_tokens} tokens x {epochs} epochs at {tokens_per_step} tokens a step is {steps} steps"
    if max_steps and max_steps < steps:
        tokens = min(max_steps * tokens_per_step, train_tokens * epochs)
        return StepPlan(max_steps, tokens, f"{words}, cut to training.maxSteps {max_steps}: {tokens} tokens")
    return StepPlan(steps, train_tokens * epochs, words)
