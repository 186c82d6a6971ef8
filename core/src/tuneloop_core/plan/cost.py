"""Floating-point operations, seconds and price of a train stage: right within a factor, not within a percent.

Never measures; status.usage holds what it really took.
"""

import math
from dataclasses import dataclass

from tuneloop_core.api.shape import ModelShape
from tuneloop_core.constants import GENERATED_TOKEN_COST
from tuneloop_core.plan.memory import FLOAT32
from tuneloop_core.plan.parameters import Adapter, active_weights

UTILISATION = 0.35
"""Share of the dense bfloat16 rate that LoRA training reaches on models of a billion parameters and more: 0.31 to 0.43
on an H100 (NeMo Automodel docs/performance-summary.mdx, torchtitan benchmarks/llama3_h100_202412); smaller models are
bound by launching kernels, and reach less by the square root of their size."""
START_SECONDS = 45.0
"""Start of the container, imports, and the proofs before training."""
TASKS_START_SECONDS = 20.0
"""lm-eval's imports, of one core (docs/adr/0060)."""
LOAD_BYTES_PER_SECOND = 200e6
LINK_BYTES_PER_SECOND = {"node": 20e9, "nodes": 2.5e9}
"""Between devices of a node over PCIe, and between nodes over 25 Gbit/s: assumed, not measured. NVLink and InfiniBand
are several times faster; only training all weights feels it."""


@dataclass(frozen=True)
class Work:
    """What is computed: tokens of all epochs, rows that are scored twice, answers that are generated twice."""

    tokens: int
    mean_length: float  # tokens of a row
    trained_share: float  # of the tokens, those that pass the head
    scored_tokens: int = 0
    answers: int = 0
    prompt_tokens: int = 0  # of one
    new_tokens: int = 0  # of one
    asked_tokens: int = 0  # of evaluation.tasks, for one model; all of them pass the head
    reference_tokens: int = 0  # of DPO and KTO: the base model sees them once, before the first step
    measured_tokens: int = 0  # of KTO: seen without a gradient beside those that are trained on


def forward_flops(shape: ModelShape, mean_length: float, head_share: float) -> float:
    """Of one token: 2 a weight, and 2 s d L for causal attention (arXiv:2001.08361, 2.1).

    s is the tokens of a row, of which half are seen; d the width of all heads. Only the trained tokens pass the head.
    """
    weights = active_weights(shape) + shape.vocabulary * shape.hidden_size * head_share
    return 2 * weights + 2 * mean_length * shape.heads * shape.head_size * shape.layers


def training_flops(shape: ModelShape, work: Work, adapter: Adapter, recompute: bool) -> float:
    """Of one token: forward, the gradient by the inputs (as much), by the weights (as much, where all are trained).

    LoRA leaves out the last: 4 N + 6 s d L a token, since attention's backward costs twice its forward. Recompute adds
    a forward pass.
    """
    forward = forward_flops(shape, work.mean_length, work.trained_share)
    attention = 2 * work.mean_length * shape.heads * shape.head_size * shape.layers
    backward = 2 * forward if adapter == "Full" else forward + attention
    return forward + backward + forward * recompute


def accelerator_rate(shape: ModelShape, bf16_teraflops: float) -> float:
    """FLOP/s that training reaches on one accelerator."""
    smallness = math.sqrt(min(1.0, active_weights(shape) / 1e9))
    return bf16_teraflops * 1e12 * UTILISATION * smallness


@dataclass(frozen=True)
class Gathers:
    """What processes send each other of a model that is split over them, in bytes a pass and in passes."""

    weights: int  # gathered in every pass, forward and backward
    gradients: int  # handed on after every pack, where all weights are trained
    rounds: int  # packs of a process in all steps
    measured: int = 0  # packs of a process in all steps that KTO looks at without a gradient
    evaluated: int = 0  # passes beside training, of both models: each process computes all of them
    asked: int = 0  # passes of both models for evaluation.tasks

    @property
    def training(self) -> int:
        """Bytes of all steps."""
        return self.rounds * (2 * self.weights + self.gradients)


@dataclass(frozen=True)
class Crew:
    """Processes that train together, one a device; ``steps`` of them exchange this many trained numbers each."""

    processes: int = 1
    nodes: int = 1
    steps: int = 0
    exchanged: int = 0
    gathers: Gathers | None = None  # of a model that is split

    @property
    def exchange_seconds(self) -> float:
        """Of all steps: a ring sends and receives 2 (n - 1) / n of the float32 gradients (Patarasuk and Yuan 2009)."""
        if self.gathers is not None and self.gathers.gradients:
            return 0.0  # they go to their holders after each pack
        return self._seconds(self.steps * 2 * FLOAT32 * self.exchanged)

    def training_seconds(self, computing: float) -> float:
        """Of all steps: layers are gathered while others are computed, so that the longer of both counts."""
        gathering = 0.0 if self.gathers is None else self._seconds(self.gathers.training)
        return max(computing, gathering) + self.exchange_seconds

    def pass_seconds(self, kind: str) -> float:
        """Of gathering for the passes without a gradient of one kind: measured, evaluated or asked."""
        return 0.0 if self.gathers is None else self._seconds(getattr(self.gathers, kind) * self.gathers.weights)

    def _seconds(self, size: int) -> float:
        share = (self.processes - 1) / self.processes  # of it comes from others
        return share * size / LINK_BYTES_PER_SECOND["nodes" if self.nodes > 1 else "node"]


ALONE = Crew()


def stage_seconds(  # noqa: PLR0913 - each is a fact of its own
    shape: ModelShape,
    work: Work,
    adapter: Adapter,
    recompute: bool,
    rate: float,
    max_seconds: float,
    model_bytes: int,
    crew: Crew = ALONE,
) -> float:
    """Seconds of the train stage: start, loading, base evaluation, training (at most ``max_seconds``), evaluation.

    ``rate`` is of one device; a crew shares the training, and what KTO measures in it. Every device evaluates the same,
    so that this takes as long; so does the base model's view of answers that DPO and KTO need.
    """
    forward = forward_flops(shape, work.mean_length, work.trained_share) / rate
    training = work.tokens * training_flops(shape, work, adapter, recompute) / (rate * crew.processes)
    training = crew.training_seconds(training)
    measuring = work.measured_tokens * forward / crew.processes + crew.pass_seconds("measured")
    measuring *= min(1.0, max_seconds / training) if training else 0.0
    generated = work.answers * (work.prompt_tokens + GENERATED_TOKEN_COST * work.new_tokens)
    passes = (2 * (work.scored_tokens + generated) + work.reference_tokens) * forward + crew.pass_seconds("evaluated")
    asking = tasks_seconds(shape, work, rate, crew)
    loading = START_SECONDS + model_bytes / LOAD_BYTES_PER_SECOND
    return loading + min(training, max_seconds) + measuring + passes + asking


def tasks_seconds(shape: ModelShape, work: Work, rate: float, crew: Crew = ALONE) -> float:
    """Seconds of the train stage in which base and tuned model are asked evaluation.tasks; every device asks all."""
    if not work.asked_tokens:
        return 0.0
    computing = 2 * work.asked_tokens * forward_flops(shape, work.mean_length, 1.0) / rate
    return TASKS_START_SECONDS + computing + crew.pass_seconds("asked")


def rows_asked_at_once(shape: ModelShape) -> int:
    """A batch of evaluation.tasks where a model is split: 1 GiB of logits of 512 tokens a row (lmeval/scores.py)."""
    return max(1, min(16, 2**30 // (FLOAT32 * 512 * shape.vocabulary)))


def price(seconds: float, units: float, price_per_hour: float) -> float:
    """Price of this many accelerators, or cores, for these seconds."""
    return seconds / 3600 * units * price_per_hour
