"""Peak memory of a training run by part, for this trainer: what its loop, LoRA layers, loss and optimizer keep.

Written beside trainer-image/src/tuneloop_trainer (loop.py, lora.py, loss.py, optimizer.py, evaluation.py) and held to
it by `make bench-plan`; the table is in docs/plan.md. All sizes are bytes. Never decides whether they fit.
"""

from dataclasses import dataclass, fields

from tuneloop_core.api.shape import ModelShape
from tuneloop_core.plan import parameters, split
from tuneloop_core.plan.families import family
from tuneloop_core.plan.parameters import Adapter

FLOAT32 = 4
QLORA_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A weight in NF4 with double quantisation (arXiv:2305.14314): 4 bits, a byte a 64, 4 bytes a 64 x 256."""
MOMENTS = 2
"""Adam's, in float32 (optimizer.py). Float32 master weights come on top where weights are in another format."""
CHUNK_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}
"""Float32 logits of a chunk (loss.py)."""
GENERATION_BATCH = {"cpu": 16, "cuda": 64}
"""Answers that are generated at once (evaluation.py)."""
FIXED_BYTES = {"cpu": 780 * 2**20, "cuda": 700 * 2**20}
"""CPU: the process after its imports and its libraries' buffers, measured. CUDA: context and libraries' handles."""
QUANTISER_BYTES = {"cpu": 100 * 2**20, "cuda": 0}
"""bitsandbytes, which is imported with a 4-bit model; measured on CPU."""
HOST_FIXED_BYTES = 3 * 2**30
"""Of a process that trains on an accelerator: imports, CUDA's libraries, /dev/shm, the checkpoint's piece (assumed)."""
SHARD_BYTES = 4 * 10**9
"""Of a whole model that is written (whole.py); a shard comes down from the accelerator and is written."""
ALLOCATOR = {"cpu": 1.6, "cuda": 1.1}
"""What the allocator holds of short-lived blocks over what lives. glibc 2.36 does not fit an aligned block into a hole
of its own size (measured: 1.5 to 1.9, docs/plan.md); CUDA's caching allocator rounds and splits (not measured)."""


@dataclass(frozen=True)
class Load:
    """One way to train one model: what a job asks for and the device decides."""

    device: str  # cpu | cuda
    number_bytes: int  # of a weight and an activation: 2 in bfloat16, 4 in float32
    pack_tokens: int  # of the largest pack
    trained_tokens: int  # of that pack's tokens, those that carry loss
    adapter: Adapter = "LoRA"
    rank: int = 16
    target_modules: str = "all-linear"
    recompute: bool = False
    longest_prompt: int = 0  # tokens
    answers: int = 0  # generated for evaluation; 0 generates none
    new_tokens: int = 0
    merges: bool = False  # QLoRA into the base as it was, which then lies in memory in the device's format
    processes: int = 1  # that the weights may be split over
    shards: int = 1  # and are; 1: each holds all of them

    @property
    def trains_base(self) -> bool:
        """Whether all weights are trained."""
        return self.adapter == "Full"


@dataclass(frozen=True)
class Memory:
    """Peak bytes by part; ``evaluation`` is what generating answers takes beyond what training held."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    evaluation: int
    overhead: int

    @property
    def total(self) -> int:
        """The peak."""
        return sum(getattr(self, part.name) for part in fields(self))


def estimate(shape: ModelShape, load: Load) -> Memory:
    """Peak memory: weights, gradients and optimizer stay; activations and logits, or generating, come on top."""
    trained = parameters.trainable_parameters(shape, load.adapter, load.rank, load.target_modules)
    held, weights = ALLOCATOR[load.device], weight_bytes(shape, load, trained)
    activations = round(held * activation_bytes(shape, load))
    logits = logit_bytes(shape, load)
    beyond = max(round(held * generation_bytes(shape, load)), _saving_bytes(shape, load))
    return Memory(
        weights=weights,
        gradients=_gradient_bytes(shape, load, trained),
        optimizer=_optimizer_bytes(shape, load, trained),
        activations=activations,
        logits=logits,
        evaluation=max(0, _whole_bytes(shape, load, weights) + beyond - activations - logits),
        overhead=fixed_bytes(load),
    )


def _gradient_bytes(shape: ModelShape, load: Load, trained: int) -> int:
    if load.shards > 1 and load.trains_base:
        return split.gradient_bytes(shape, load.number_bytes, load.shards)
    return trained * FLOAT32 + _largest_gradient(shape, load)


def _optimizer_bytes(shape: ModelShape, load: Load, trained: int) -> int:
    """Adam's moments, and float32 copies of what is trained in another format; split weights are their own copies."""
    if load.shards > 1 and load.trains_base:
        return split.held_parameters(shape, load.shards) * FLOAT32 * MOMENTS
    return trained * FLOAT32 * (MOMENTS + (load.number_bytes < FLOAT32))


def _saving_bytes(shape: ModelShape, load: Load) -> int:
    return split.saving_bytes(shape, load.shards) if load.shards > 1 and load.trains_base else 0


def fixed_bytes(load: Load) -> int:
    """What is there before any weight is."""
    return FIXED_BYTES[load.device] + QUANTISER_BYTES[load.device] * (load.adapter == "QLoRA")


def host_bytes(shape: ModelShape, load: Load, processes: int, *, keeps_best: bool, writes_model: bool) -> int:
    """The most that a train pod takes beside its accelerators, of which each has a process.

    Weights come through host memory, at most once a process: where the file has the device's number format they are
    pages of it, which the kernel may drop. With early stopping each process keeps the best weights there, in float32.
    The first one writes. Checkpoints leave the accelerator piece by piece (tensorfile.py). Where weights are split the
    first one reads for all; a whole model is then put together in its host memory.
    """
    trained = parameters.trainable_parameters(shape, load.adapter, load.rank, load.target_modules)
    loading = 0 if load.adapter == "QLoRA" else parameters.total_parameters(shape) * load.number_bytes
    kept = trained * FLOAT32 * keeps_best
    if load.shards > 1:
        kept = split.held_parameters(shape, load.shards) * FLOAT32 * keeps_best if load.trains_base else kept
        return processes * HOST_FIXED_BYTES + loading * (1 + writes_model) + processes * kept
    return processes * (HOST_FIXED_BYTES + max(loading, kept)) + 2 * SHARD_BYTES * writes_model


def weight_bytes(shape: ModelShape, load: Load, trained: int) -> int:
    """The model in the device's format (QLoRA: its linear layers in 4 bits) and the adapter in the same format."""
    total, added = parameters.total_parameters(shape), 0 if load.adapter == "Full" else trained
    if load.shards > 1:
        rows = split.weight_bytes(shape, load.number_bytes, load.shards, trained=load.trains_base)
        return rows + added * load.number_bytes
    if load.adapter != "QLoRA":
        return (total + added) * load.number_bytes
    quantised = parameters.linear_weights(shape)
    return round(quantised * QLORA_BYTES) + (total - quantised + added) * load.number_bytes


def _whole_bytes(shape: ModelShape, load: Load, weights: int) -> int:
    """What the merged model that is evaluated takes beyond the weights in training."""
    return max(0, parameters.total_parameters(shape) * load.number_bytes - weights) if load.merges else 0


def activation_bytes(shape: ModelShape, load: Load) -> int:
    """Bytes kept for backward: every layer's; with recompute their inputs and one layer's (arXiv:1604.06174)."""
    layer = _layer_numbers(shape, load) * load.number_bytes + _norm_copies(shape, load)
    stream = shape.hidden_size * load.number_bytes
    layers = shape.layers * stream + layer if load.recompute else shape.layers * layer
    copies = _adapted_experts(shape, load) * (1 if load.recompute else shape.layers - shape.dense_layers)
    return round(load.pack_tokens * (layers + 2 * stream)) + _dequantised(shape, load) + copies


def _layer_numbers(shape: ModelShape, load: Load) -> float:
    """Numbers a token that one layer keeps for backward; verified tensor by tensor on float32 Llamas.

    Residual stream twice and the normed input of attention and of the MLP (4 H); Gemma's output norms keep their two
    inputs. Query, key, value, attention's output and its copy in the order of the next product. Gated MLP: gate, its
    activation, up, product; plain MLP: before and after the activation. Each LoRA layer: its product of low rank.
    """
    traits, hidden = family(shape.architecture), shape.hidden_size
    query, key = shape.heads * shape.head_size, shape.key_value_heads * shape.head_size
    alone = load.device == "cpu" or load.number_bytes == FLOAT32  # attention document by document (attention.py)
    seen = query if alone else key  # it repeats keys and values for their groups
    numbers: float = (2 + traits.norms) * hidden + 3 * query + 2 * seen
    numbers += (query + key) * traits.query_key_norm
    numbers += _mlp_numbers(shape)
    return numbers + _adapter_numbers(shape, load) / shape.layers


def _mlp_numbers(shape: ModelShape) -> float:
    kept = 4 if family(shape.architecture).gated else 2
    if not shape.experts:
        return kept * shape.intermediate_size
    sparse = (shape.layers - shape.dense_layers) / shape.layers
    routed = shape.experts_per_token * (kept * shape.expert_size + 2 * shape.hidden_size)
    return sparse * (routed + kept * shape.shared_expert_size) + (1 - sparse) * kept * shape.intermediate_size


def _adapter_numbers(shape: ModelShape, load: Load) -> int:
    """LoRA keeps its low-rank product; DoRA besides the base's and the adapter's output; full training the norms'."""
    if load.adapter == "Full":
        return shape.layers * family(shape.architecture).norms * shape.hidden_size
    chosen = parameters.targeted(shape, load.target_modules)
    outputs = sum(2 * matrix.outputs * matrix.count for matrix in chosen) if load.adapter == "DoRA" else 0
    return outputs + load.rank * sum(matrix.count for matrix in chosen)


def _norm_copies(shape: ModelShape, load: Load) -> int:
    """Norms compute in float32: in bfloat16 each keeps a copy of its input."""
    return family(shape.architecture).norms * shape.hidden_size * FLOAT32 if load.number_bytes < FLOAT32 else 0


def _dequantised(shape: ModelShape, load: Load) -> int:
    """QLoRA brings one matrix at a time back to the device's format; DoRA makes one to take its norm."""
    largest = max(matrix.inputs * matrix.outputs for matrix in parameters.matrices(shape))
    return largest * load.number_bytes * {"QLoRA": 1, "DoRA": 2}.get(load.adapter, 0)


def _adapted_experts(shape: ModelShape, load: Load) -> int:
    """Routed experts of one layer as they are computed: the adapter's product is added to all of them, in a copy.

    Backward needs that copy, and no gathering brings it back where weights are split (PEFT 0.21.2 tuners/lora/layer.py,
    ``_LoraFactorsProxy.forward``: ``baddbmm``). It does not grow with the pack.
    """
    if load.adapter == "Full" or not parameters.adapts_experts(shape, load.target_modules):
        return 0
    return parameters.expert_weights(shape, shape.experts) // (shape.layers - shape.dense_layers) * load.number_bytes


def _largest_gradient(shape: ModelShape, load: Load) -> int:
    """One gradient at a time lies in the device's format, before it is added to the float32 sums.

    Of adapted experts that of the copy of gate and up, which is two thirds of them, on its way to the adapter.
    """
    if load.adapter == "Full":
        return shape.vocabulary * shape.hidden_size * load.number_bytes
    return _adapted_experts(shape, load) * 2 // 3


def logit_bytes(shape: ModelShape, load: Load) -> int:
    """A chunk's logits: as computed, in float32, and one temporary; and the hidden states' gradients (loss.py).

    A head that is trained has a float32 gradient of its own besides.
    """
    rows = min(max(1, CHUNK_BYTES[load.device] // (shape.vocabulary * FLOAT32)), max(1, load.trained_tokens))
    copies = 2 * FLOAT32 + (2 * load.number_bytes if load.number_bytes < FLOAT32 else 0)
    head = shape.vocabulary * shape.hidden_size * FLOAT32 if load.adapter == "Full" else 0
    return rows * shape.vocabulary * copies + 2 * load.trained_tokens * shape.hidden_size * load.number_bytes + head


def generation_bytes(shape: ModelShape, load: Load) -> int:
    """Keys and values of a batch of answers, the widest layer of their prompts, the mask, and the last logits.

    And one layer's experts where they are adapted.
    """
    batch = min(load.answers, GENERATION_BATCH[load.device])
    prompts = batch * load.longest_prompt
    kept = batch * (load.longest_prompt + load.new_tokens) * shape.layers
    cache = 2 * kept * shape.key_value_heads * shape.head_size * load.number_bytes
    width = 3 * max(shape.intermediate_size, shape.heads * shape.head_size) + 3 * shape.hidden_size
    mask = prompts * load.longest_prompt * load.number_bytes
    logits = batch * shape.vocabulary * 2 * FLOAT32
    return cache + prompts * width * load.number_bytes + mask + logits + _adapted_experts(shape, load)
