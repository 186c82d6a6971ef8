"""How long a train pod may take to end: the pack at hand, a checkpoint, and reserve. Pure.

SIGTERM is obeyed between packs, and then a checkpoint is written. So

    grace = RESERVE + 2 x (seconds of a pack + seconds of a checkpoint: its bytes / STORE_BYTES_PER_SECOND),

at least 30 s and at most an hour: a pod ends as soon as its checkpoint is written, so that a drain waits this long
only for one that needs it, or hangs. A checkpoint holds 16 bytes for each trained parameter (weight, summed gradient
and both moments in float32), 20 with early stopping, which keeps the best weights too. Twice, since both are estimates
of a machine that others use. An hour is all weights of 5 billion parameters; beyond it, and where a spot notice or the
cluster's autoscaler ends the pod before, training goes on from the checkpoint before (docs/adr/0034).
"""

from tuneloop_core.api.finetunejob import FineTuneJobSpec
from tuneloop_core.api.finetunejob_status import FineTuneJobStatus, PlanStatus
from tuneloop_core.api.formats import parse_duration
from tuneloop_core.constants import PACK_TOKENS, STOPPING_SECONDS

LEAST_SECONDS = 30
MOST_SECONDS = STOPPING_SECONDS
UNPLANNED_SECONDS = 120  # where the plan says nothing about parameters or time
RESERVE_SECONDS = 15.0
STORE_BYTES_PER_SECOND = 50e6  # written, read once for the digest, and synced: a slow network volume
PARAMETER_BYTES, BEST_BYTES = 16, 4


def grace_seconds(saving: float, pack_seconds: float) -> int:
    """The formula above; ``saving`` is seconds of a checkpoint."""
    wanted = RESERVE_SECONDS + 2 * (pack_seconds + saving)
    return round(min(max(wanted, LEAST_SECONDS), MOST_SECONDS))


def checkpoint_seconds(spec: FineTuneJobSpec, plan: PlanStatus) -> float:
    """Seconds that one checkpoint of this job takes; 0 where the plan says nothing about parameters."""
    best = BEST_BYTES if spec.training.early_stopping else 0
    return plan.trainable_parameters * (PARAMETER_BYTES + best) / STORE_BYTES_PER_SECOND


def train_grace(spec: FineTuneJobSpec, status: FineTuneJobStatus) -> int:
    """Seconds for the train pod of this job, by its plan."""
    plan = status.plan or PlanStatus()
    if not plan.trainable_parameters or not plan.estimated_duration or not plan.tokens:
        return UNPLANNED_SECONDS
    longest = status.dataset.max_tokens if status.dataset else 0
    tokens = max(PACK_TOKENS["cuda" if spec.resources.accelerators else "cpu"], longest)
    processes = spec.resources.nodes * max(1, spec.resources.accelerators)  # they share the plan's time
    pack_seconds = parse_duration(plan.estimated_duration) * min(1.0, processes * tokens / plan.tokens)
    return grace_seconds(checkpoint_seconds(spec, plan), pack_seconds)
