"""Attention over packed documents: each token sees its own document and nothing else, at no cost for the rest.

transformers can isolate packed documents by itself, with a dense mask whose cost grows with the square of the pack.
Here a pack is cut at its document borders instead: one kernel for all on CUDA, one causal kernel a document on CPU.
Registered under ``NAME``; only used in training and scoring, never in generation.
"""

from typing import Any

import torch
import torch.nn.functional as functional
from transformers import AttentionInterface

NAME = "tuneloop_packed"


def register() -> None:
    """Make the implementation known to transformers. It has no mask function, so that no mask is ever built."""
    AttentionInterface.register(NAME, packed_attention)


def packing_arguments(lengths: list[int], device: torch.device) -> dict[str, Any]:
    """What a model's forward needs besides the ids: positions that begin anew, and where documents end.

    Names are those of transformers' FlashAttentionKwargs, so that models pass them through.
    """
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0).to(device)
    borders = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
    return {
        "position_ids": positions,
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        "document_lengths": tuple(lengths),
    }


def packed_attention(  # noqa: PLR0913 - the signature is transformers'
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document; shapes (1, heads, tokens, head size) to (1, tokens, heads, head size)."""
    lengths = kwargs["document_lengths"]
    window = sliding_window if sliding_window and sliding_window < kwargs["max_length_q"] else None
    if query.is_cuda:
        return _on_cuda(query, key, value, scaling, window, kwargs), None
    return _on_cpu(query, key, value, scaling, window, lengths), None


def _on_cuda(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    kwargs: dict[str, Any],
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 - CUDA only

    tokens_first = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    output = varlen_attn(
        *tokens_first,
        kwargs["cu_seq_lens_q"],
        kwargs["cu_seq_lens_k"],
        kwargs["max_length_q"],
        kwargs["max_length_k"],
        scale=scaling,
        window_size=(window - 1 if window else -1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, torch.Tensor)
    return output.unsqueeze(0)


def _on_cpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    lengths: tuple[int, ...],
) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    pieces = [
        functional.scaled_dot_product_attention(
            *document,
            scale=scaling,
            attn_mask=_window_mask(length, window) if window and length > window else None,
            is_causal=not (window and length > window),
        )
        for length, *document in zip(
            lengths, query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True
        )
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2)


def _window_mask(length: int, window: int) -> torch.Tensor:
    """True where a token may look: itself and the ``window - 1`` before it."""
    distance = torch.arange(length).unsqueeze(1) - torch.arange(length)
    return (distance >= 0) & (distance < window)
