"""What one process of a job holds of a model whose weights are split over all of them (FSDP2, docs/adr/0070).

Written beside trainer-image/src/tuneloop_trainer/sharding.py and torch 2.13's torch/distributed/fsdp/_fully_shard. All
sizes are bytes. Activations and logits are not split: each process computes its own packs. Not measured on a GPU.
"""

import math

from tuneloop_core.api.shape import ModelShape
from tuneloop_core.plan import parameters

FLOAT32 = 4
GATHERED_LAYERS = 3
"""At once: the layer that is computed, the buffer of its gather, which is let go of at the next one, and that of the
layer that is prefetched (_fsdp_param_group.py, ``wait_for_unshard``)."""
REDUCED_LAYERS = 2
"""Gradients of a layer on their way to those who keep them: its own, and the one before (``post_backward``)."""


def share(numbers: int, processes: int) -> int:
    """The most that one process holds of these (rounded up; FSDP pads rows besides)."""
    return -(-numbers // processes)


def outer_parameters(shape: ModelShape) -> int:
    """Of what is in no layer: embedding, head and the last norm. They are whole as long as a pack is computed."""
    return parameters.embedding_weights(shape) + shape.hidden_size


def largest_layer(shape: ModelShape) -> int:
    """Parameters of the largest layer. Where some are dense and some sparse, the sparse ones."""
    layers = parameters.total_parameters(shape) - outer_parameters(shape)
    if not shape.experts or not shape.dense_layers:
        return math.ceil(layers / shape.layers)
    dense = 3 * shape.hidden_size * shape.intermediate_size  # of a dense layer's MLP: gate, up, down
    attention = (layers - dense * shape.dense_layers - _sparse(shape)) / shape.layers
    return math.ceil(attention + max(dense, _sparse(shape) / (shape.layers - shape.dense_layers)))


def _sparse(shape: ModelShape) -> int:
    """Of all sparse layers: routed experts, the shared one and routers."""
    sparse = shape.layers - shape.dense_layers
    shared = 3 * shape.hidden_size * shape.shared_expert_size
    return parameters.expert_weights(shape, shape.experts) + sparse * (shared + shape.hidden_size * shape.experts)


def weight_bytes(shape: ModelShape, number_bytes: int, processes: int, *, trained: bool) -> int:
    """A process's rows, in float32 where they are trained, and what is gathered in the device's format."""
    held = share(parameters.total_parameters(shape), processes) * (FLOAT32 if trained else number_bytes)
    outer = outer_parameters(shape)
    return held + number_bytes * (outer + max(outer, GATHERED_LAYERS * largest_layer(shape)))


def gradient_bytes(shape: ModelShape, number_bytes: int, processes: int) -> int:
    """Where all weights are trained: a process's float32 sums, and gradients on their way.

    Those of embedding and head lie whole until the end of backward. They are added up in float32 (``foreach_reduce``).
    """
    sums = share(parameters.total_parameters(shape), processes) * FLOAT32
    outer, layer = outer_parameters(shape), largest_layer(shape)
    return sums + outer * number_bytes + max(outer * FLOAT32, REDUCED_LAYERS * layer * (FLOAT32 + number_bytes))


def saving_bytes(shape: ModelShape) -> int:
    """The largest tensor, whole in float32 on the first process as it is written, and its copy on the way there."""
    return 2 * shape.vocabulary * shape.hidden_size * FLOAT32
