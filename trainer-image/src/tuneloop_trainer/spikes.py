"""When a training loss is a spike, and when training has diverged: pure functions of the losses so far.

A loss is a spike when it lies above the median of the steps before it by ten robust standard deviations (1.4826 times
the median absolute deviation, which is the standard deviation of a normal distribution) and by at least one nat. The
median and its deviation do not follow the spikes themselves, as mean and variance would.

One spike is only logged: its gradient is clipped to norm 1, so one odd batch does little harm, and leaving it out would
silently train on other data than was asked for. A run of spikes is divergence, from which training does not recover
by itself: it stops. A pure function of the curve, so that an interrupted run decides as an uninterrupted one does.
"""

from collections.abc import Sequence
from statistics import median

from tuneloop_core.stages import Reason

from tuneloop_trainer.errors import StageError

WINDOW = 64  # steps that say what is usual
ENOUGH = 16  # fewer say nothing
RUN = 8  # spikes in a row that are divergence
DEVIATIONS = 10.0
LEAST_RISE = 1.0  # nats: the chance of the right token falls to a third
NORMAL = 1.4826


def limit(before: Sequence[float]) -> float:
    """The loss above which a step is a spike, by the last ``WINDOW`` losses before it; infinite while they are few."""
    usual = before[-WINDOW:]
    if len(usual) < ENOUGH:
        return float("inf")
    middle = median(usual)
    deviation = NORMAL * median([abs(loss - middle) for loss in usual])
    return middle + max(DEVIATIONS * deviation, LEAST_RISE)


def is_spike(losses: Sequence[float]) -> bool:
    """Whether the last loss is a spike among those before it."""
    return bool(losses) and losses[-1] > limit(losses[:-1])


def diverged(losses: Sequence[float]) -> bool:
    """Whether each of the last ``RUN`` losses is a spike by what was usual before all of them."""
    return len(losses) > RUN and min(losses[-RUN:]) > limit(losses[:-RUN])


def divergence(losses: Sequence[float], step: int, kept: int | None, rate: str) -> StageError:
    """``LossSpike`` of a training that ``diverged`` at ``step``; the newest checkpoint is that of step ``kept``."""
    usual, least = median(losses[:-RUN]), min(losses[-RUN:])
    return StageError(
        Reason.LOSS_SPIKE,
        f"the loss was {usual:.3g} and has been {least:.3g} or more for {RUN} steps, up to step {step}: training "
        f"diverged. The checkpoint of step {kept} is kept. Lower training.learningRate (now {rate}), and look for odd "
        "texts in the dataset.",
    )
