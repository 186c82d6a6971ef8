"""Parameters of a model and of its adapter, counted matrix by matrix. Exact for the families that are known.

Checked against transformers' own count of each family (trainer-image/tests/test_trainer_plan.py). Never knows bytes.
"""

from dataclasses import dataclass
from typing import Literal

from tuneloop_core.api.method import ALL_LINEAR
from tuneloop_core.api.shape import ModelShape
from tuneloop_core.plan.families import family

Adapter = Literal["LoRA", "QLoRA", "DoRA", "Full"]


@dataclass(frozen=True)
class Matrix:
    """Linear layers of one name: ``outputs`` x ``inputs`` weights each, ``count`` in the whole model."""

    name: str
    inputs: int
    outputs: int
    count: int
    bias: bool = False
    mlp: bool = False

    @property
    def weights(self) -> int:
        """Weights of all of them, without biases."""
        return self.inputs * self.outputs * self.count


def matrices(shape: ModelShape) -> tuple[Matrix, ...]:
    """The linear layers: all but the head, the routed experts (one tensor a layer in transformers 5) and the router."""
    dense = shape.dense_layers if shape.experts else shape.layers
    found = (*_attention(shape), *_mlp(shape, shape.intermediate_size, dense))
    if not shape.experts or not shape.shared_expert_size:
        return found
    sparse = shape.layers - shape.dense_layers
    gate = Matrix("shared_expert_gate", shape.hidden_size, 1, sparse, mlp=True)
    shared = _mlp(shape, shape.shared_expert_size, sparse)
    return (*found, *shared, gate) if family(shape.architecture).shared_expert_gate else (*found, *shared)


def _attention(shape: ModelShape) -> tuple[Matrix, ...]:
    names, hidden = family(shape.architecture).names, shape.hidden_size
    query, key = shape.heads * shape.head_size, shape.key_value_heads * shape.head_size
    bias, count = shape.query_key_value_bias, shape.layers
    if len(names) == 4:  # one matrix for query, key and value
        fused = Matrix(names[0], hidden, query + 2 * key, count, bias)
        return fused, Matrix(names[1], query, hidden, count, shape.output_bias)
    return (
        Matrix(names[0], hidden, query, count, bias),
        Matrix(names[1], hidden, key, count, bias),
        Matrix(names[2], hidden, key, count, bias),
        Matrix(names[3], query, hidden, count, shape.output_bias),
    )


def _mlp(shape: ModelShape, width: int, count: int) -> tuple[Matrix, ...]:
    traits, hidden, bias = family(shape.architecture), shape.hidden_size, shape.mlp_bias
    if not count:
        return ()
    down = Matrix(traits.names[-1], width, hidden, count, bias, mlp=True)
    if len(traits.names) == 4:  # gate and up are one matrix, or there is no gate
        return Matrix(traits.names[2], hidden, width * (1 + traits.gated), count, bias, mlp=True), down
    gate, up = (Matrix(name, hidden, width, count, bias, mlp=True) for name in traits.names[4:6])
    return gate, up, down


def targeted(shape: ModelShape, target_modules: str) -> tuple[Matrix, ...]:
    """The matrices that ``method.lora.targetModules`` names, by the last part: PEFT takes ``self_attn.q_proj`` too.

    What stands before it chooses among matrices of one name (``layers.0.mlp.up_proj``): they are counted in full.
    """
    every = matrices(shape)
    if target_modules != ALL_LINEAR:
        wanted = {_last(name) for name in target_modules.split(",")}
        return tuple(matrix for matrix in every if matrix.name in wanted)
    return tuple(matrix for matrix in every if not matrix.mlp) if adapts_experts(shape, target_modules) else every


def untargeted(shape: ModelShape, target_modules: str) -> tuple[str, ...]:
    """The names among ``targetModules`` that no linear layer has."""
    if target_modules == ALL_LINEAR:
        return ()
    there = {matrix.name for matrix in matrices(shape)}
    return tuple(name for name in target_modules.split(",") if _last(name) not in there)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def adapts_experts(shape: ModelShape, target_modules: str) -> bool:
    """Whether PEFT puts an adapter beside routed experts."""
    return target_modules == ALL_LINEAR and bool(shape.experts) and family(shape.architecture).experts_adapted


def _expert_adapters(shape: ModelShape, rank: int) -> int:
    """What PEFT 0.21 puts beside routed experts: twice the rank for gate and up, which are one matrix; the router too.

    peft/utils/transformers_weight_conversion.py.
    """
    hidden, width = shape.hidden_size, shape.expert_size
    expert = 2 * rank * (hidden + 2 * width) + rank * (width + hidden)
    return (shape.experts * expert + rank * (hidden + shape.experts)) * (shape.layers - shape.dense_layers)


def linear_weights(shape: ModelShape) -> int:
    """Weights of the linear layers, which is what QLoRA holds in 4 bits."""
    return sum(matrix.weights for matrix in matrices(shape))


def expert_weights(shape: ModelShape, experts: int) -> int:
    """Weights of this many routed experts in every sparse layer (gate, up, down)."""
    return 3 * shape.hidden_size * shape.expert_size * experts * (shape.layers - shape.dense_layers)


def embedding_weights(shape: ModelShape) -> int:
    """Embedding and head; one matrix where they are tied."""
    return shape.vocabulary * shape.hidden_size * (1 if shape.tied else 2)


def total_parameters(shape: ModelShape) -> int:
    """Parameters of the base model: matrices and their biases, experts and routers, norms, embedding and head."""
    biases = sum(matrix.outputs * matrix.count for matrix in matrices(shape) if matrix.bias)
    router = shape.hidden_size * shape.experts * (shape.layers - shape.dense_layers) if shape.experts else 0
    experts = expert_weights(shape, shape.experts) if shape.experts else 0
    return linear_weights(shape) + biases + experts + router + _norms(shape) + embedding_weights(shape)


def _norms(shape: ModelShape) -> int:
    traits = family(shape.architecture)
    vectors = (shape.layers * traits.norms + 1) * (1 + traits.norm_bias) * shape.hidden_size
    return vectors + 2 * shape.layers * shape.head_size * traits.query_key_norm


def active_weights(shape: ModelShape) -> int:
    """Weights that a token is multiplied with in the layers: routed experts count as often as a token passes them."""
    routed = expert_weights(shape, shape.experts_per_token) if shape.experts else 0
    return linear_weights(shape) + routed


def trainable_parameters(shape: ModelShape, adapter: Adapter, rank: int, target_modules: str) -> int:
    """LoRA (arXiv:2106.09685) adds rank x (inputs + outputs) a matrix, DoRA (arXiv:2402.09353) its outputs besides."""
    if adapter == "Full":
        return total_parameters(shape)
    chosen = targeted(shape, target_modules)
    added = sum(rank * (matrix.inputs + matrix.outputs) * matrix.count for matrix in chosen)
    if adapter == "DoRA":
        added += sum(matrix.outputs * matrix.count for matrix in chosen)
    return added + _expert_adapters(shape, rank) * adapts_experts(shape, target_modules)
