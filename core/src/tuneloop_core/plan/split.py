"""What one process of a job holds of a model whose weights are split over all of them (FSDP2, docs/adr/0070).

Written beside trainer-image/src/tuneloop_trainer/sharding.py and torch 2.13's torch/distributed/fsdp/_fully_shard. All
sizes are bytes. Activations and logits are not split: each process computes its own packs. Not measured on a GPU.
"""

import math

from tuneloop_core.api.shape import ModelShape
from tuneloop_core.plan import parameters

FLOAT32 = 4
GATHER_BUFFERS = 2
"""Beside the layer that is computed: the buffer of its gather, which is let go of at the next one, and that of the
layer that is prefetched (_fsdp_param_group.py, ``wait_for_unshard``). All three have room for what experts are filled
up by: a layer's tensors are views of its gather (_fsdp_param.py, ``init_unsharded_param``)."""
REDUCED_LAYERS = 2
"""Gradients of a layer on their way to those who keep them: its own, and the one before (``post_backward``)."""


def held_parameters(shape: ModelShape, processes: int) -> int:
    """The most parameters that one process holds: its share, and of routed experts, which are not cut, whole ones.

    A tensor is split by its first dimension, and each process has room for as much as the first has
    (_fsdp_param.py, ``_init_sharded_param``). That of a layer's routed experts is their number: of 8 experts each of 16
    processes has room for one. Other tensors have thousands of rows, and what they are filled up by is nothing.
    """
    every = parameters.expert_weights(shape, shape.experts)
    own = parameters.expert_weights(shape, math.ceil(shape.experts / processes))
    return math.ceil((parameters.total_parameters(shape) - every) / processes) + own


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


def sent_layer(shape: ModelShape, processes: int) -> int:
    """Numbers of the largest layer as they are gathered and handed on: with what its experts are filled up by."""
    filling = processes * math.ceil(shape.experts / processes) - shape.experts
    return largest_layer(shape) + 3 * shape.hidden_size * shape.expert_size * filling


def weight_bytes(shape: ModelShape, number_bytes: int, processes: int, *, trained: bool) -> int:
    """A process's rows, in float32 where they are trained, and what is gathered in the device's format."""
    held = held_parameters(shape, processes) * (FLOAT32 if trained else number_bytes)
    outer, layers = outer_parameters(shape), (1 + GATHER_BUFFERS) * sent_layer(shape, processes)
    return held + number_bytes * (outer + max(outer, layers))


def gradient_bytes(shape: ModelShape, number_bytes: int, processes: int) -> int:
    """Where all weights are trained: a process's float32 sums, and gradients on their way.

    Those of embedding and head lie whole until the end of backward. They are added up in float32 (``foreach_reduce``).
    """
    sums, outer = held_parameters(shape, processes) * FLOAT32, outer_parameters(shape)
    layer = largest_layer(shape) * number_bytes + sent_layer(shape, processes) * FLOAT32
    return sums + outer * number_bytes + max(outer * FLOAT32, REDUCED_LAYERS * layer)


def saving_bytes(shape: ModelShape, processes: int) -> int:
    """The largest tensor, whole in float32 on the first process as it is written, and its copy on the way there.

    That is the embedding, or gate and up of a layer's routed experts with the room of processes that hold none
    (sharding.py, ``Part.whole``).
    """
    experts = processes * math.ceil(shape.experts / processes)
    return 2 * shape.hidden_size * max(shape.vocabulary, 2 * shape.expert_size * experts) * FLOAT32
