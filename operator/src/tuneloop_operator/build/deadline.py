"""How long a train pod may run, by its own clock: training, its checkpoints, the planned evaluation, reserve. Pure.

    deadline = 1.5 x maxDuration + saves x seconds of one + PLAN_FACTOR x planned evaluation + ALLOWANCE_SECONDS,
    saves    = 1.5 x maxDuration / checkpoint.interval + 2.

``maxDuration`` bounds what packs and updates take; the half on top is for what cannot be planned. Saving is outside of
it too: between two saves lies an interval of anything else, and one is made at the end of training and one at the
deadline. It is a backstop: training ends by ``maxDuration``, a hang by ``stepTimeout``; no deadline is too long for a
pod that works, and one that is too short costs a try (docs/adr/0034).
"""

from tuneloop_core.api.finetunejob import FineTuneJobSpec
from tuneloop_core.api.finetunejob_status import FineTuneJobStatus, PlanStatus
from tuneloop_core.api.formats import parse_duration
from tuneloop_operator.build.grace import checkpoint_seconds

TRAINING_FACTOR = 1.5
PLAN_FACTOR = 3  # the planned time of evaluations may be so many times too short (tuneloop_core/plan/cost.py)
ALLOWANCE_SECONDS = 3600  # loading, base and tuned evaluation, writing the result
BACKSTOP_SECONDS = 1800  # the kubelet's deadline lies this far behind the trainer's own: pulling its image takes time
MOST_SECONDS = 2**31 - 1 - BACKSTOP_SECONDS  # activeDeadlineSeconds takes no more


def train_deadline(spec: FineTuneJobSpec, status: FineTuneJobStatus) -> int:
    """Seconds after which the train pod ends itself with its checkpoint saved, which counts as a try.

    The planned evaluation counts: one that is cut off begins anew with the next pod, and ends no sooner.
    """
    plan = status.plan or PlanStatus()
    training = TRAINING_FACTOR * parse_duration(spec.training.max_duration)
    saves = training / parse_duration(spec.checkpoint.interval) + 2
    evaluation = PLAN_FACTOR * parse_duration(plan.evaluation_duration) if plan.evaluation_duration else 0
    return round(min(training + saves * checkpoint_seconds(spec, plan) + evaluation + ALLOWANCE_SECONDS, MOST_SECONDS))
