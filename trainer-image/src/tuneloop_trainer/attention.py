"""Attention over packed documents: each token sees its own document and nothing else, at no cost for the rest.

transformers can isolate packed documents by itself, with a dense mask whose cost grows with the square of the pack.
Here a pack is cut at its document borders instead: one kernel for all on CUDA, one causal kernel a document on CPU.
Registered under ``NAME``; only used in training and scoring, never in generation.
"""

from typing import Any, NamedTuple

import torch
from torch.nn import functional
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
    window = sliding_window if sliding_window and sliding_window < kwargs["max_length_q"] else None
    packed = Packed(query, key, value, scaling, window)
    if query.is_cuda:
        return _on_cuda(packed, kwargs["cu_seq_lens_q"], kwargs["max_length_q"]), None
    return _on_cpu(packed, kwargs["document_lengths"]), None


class Packed(NamedTuple):
    """Queries, keys and values of a pack, (1, heads, tokens, head size), and how they are looked at."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scale: float | None
    window: int | None  # tokens that one may look back at, itself included; None is all

    @property
    def groups(self) -> int:
        """Query heads that share one key head."""
        return self.query.shape[1] // self.key.shape[1]


def _on_cuda(packed: Packed, borders: torch.Tensor, longest: int) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 - CUDA only

    query, key, value = (tensor.squeeze(0).transpose(0, 1) for tensor in packed[:3])
    left = packed.window - 1 if packed.window else -1
    output = varlen_attn(
        query,
        key,
        value,
        borders,
        borders,
        longest,
        longest,
        scale=packed.scale,
        window_size=(left, 0),
        enable_gqa=packed.groups > 1,
    )
    assert isinstance(output, torch.Tensor)
    return output.unsqueeze(0)


def _on_cpu(packed: Packed, lengths: tuple[int, ...]) -> torch.Tensor:
    key, value = packed.key, packed.value
    if packed.groups > 1:
        key, value = (tensor.repeat_interleave(packed.groups, dim=1) for tensor in (key, value))
    queries, keys, values = (torch.split(tensor, list(lengths), dim=2) for tensor in (packed.query, key, value))
    pieces = [
        _one_document(*document, packed.scale, packed.window) for document in zip(queries, keys, values, strict=True)
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2)


def _one_document(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, window: int | None
) -> torch.Tensor:
    length = query.shape[2]
    mask = _window_mask(length, window) if window and length > window else None
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale
    )


def _window_mask(length: int, window: int) -> torch.Tensor:
    """True where a token may look: itself and the ``window - 1`` before it."""
    distance = torch.arange(length).unsqueeze(1) - torch.arange(length)
    return (distance >= 0) & (distance < window)
