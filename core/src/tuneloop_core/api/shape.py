"""The few numbers of a model's config.json that decide how large it is and what training it takes.

Fetch reads them, status.model keeps them, the plan computes with them. Never a formula: those are in ``plan``.
"""

from pydantic import Field

from tuneloop_core.api.base import StatusModel


class ModelShape(StatusModel):
    """A decoder of transformer layers; counts are per layer where nothing else is said."""

    architecture: str = Field(max_length=64, description="model_type of config.json.")
    known: bool = Field(default=True, description="False: read as if it were a Llama; sizes are a guess.")
    hidden_size: int = Field(ge=1, description="Width of the residual stream.")
    intermediate_size: int = Field(ge=1, description="Width of a dense MLP.")
    layers: int = Field(ge=1, description="Layers.")
    heads: int = Field(ge=1, description="Query heads.")
    key_value_heads: int = Field(ge=1, description="Heads of keys and values: fewer than queries with GQA.")
    head_size: int = Field(ge=1, description="Width of a head.")
    vocabulary: int = Field(ge=1, description="Rows of the embedding.")
    max_positions: int = Field(default=0, ge=0, description="Longest sequence of the model; 0 when it is not said.")
    tied: bool = Field(default=False, description="Embedding and head are one matrix.")
    query_key_value_bias: bool = Field(default=False, description="Biases of the query, key and value projections.")
    output_bias: bool = Field(default=False, description="Bias of the attention's output projection.")
    mlp_bias: bool = Field(default=False, description="Biases of the MLP.")
    experts: int = Field(default=0, ge=0, description="Routed experts; 0 is a dense model.")
    experts_per_token: int = Field(default=0, ge=0, description="Routed experts that a token passes.")
    expert_size: int = Field(default=0, ge=0, description="Width of a routed expert.")
    shared_expert_size: int = Field(default=0, ge=0, description="Width of the shared expert; 0 when there is none.")
    dense_layers: int = Field(default=0, ge=0, description="Layers with a dense MLP in a model of experts.")
