"""Attention over packed documents: each token sees its own document and nothing else, at no cost for the rest.

transformers can isolate packed documents by itself, with a dense mask whose cost grows with the square of the pack.
Here a pack is cut at its document borders instead: one kernel for all where CUDA has it, else one a document. Documents
that begin alike (a system prompt, a question's form) share that beginning: it is computed once for the pack, and every
document looks at it as its own. Registered under ``NAME``; used in training and scoring, never in generation.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

NAME = "tuneloop_packed"
FLASH_CAPABILITY = (8, 0)  # Ampere
FLASH_FORMATS = (torch.float16, torch.bfloat16)
FLASH_LARGEST_HEAD = 256


@dataclass(frozen=True)
class Layout:
    """How a pack lies: ``shared`` tokens that all documents begin with, then what is left of each document."""

    shared: int
    rests: tuple[int, ...]

    @property
    def pieces(self) -> list[int]:
        """Lengths of the pieces in order, the shared one first if there is one."""
        return [self.shared, *self.rests] if self.shared else list(self.rests)

    @property
    def tokens(self) -> int:
        """Tokens that are computed."""
        return self.shared + sum(self.rests)

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return self.shared + max(self.rests)

    def positions(self) -> torch.Tensor:
        """Position of each token in its document, (tokens,)."""
        rests = [torch.arange(self.shared, self.shared + rest) for rest in self.rests]
        return torch.cat([torch.arange(self.shared), *rests])


def register() -> None:
    """Make the implementation known to transformers. It has no mask function, so that no mask is ever built."""
    AttentionInterface.register(NAME, packed_attention)


def packing_arguments(layout: Layout, device: torch.device) -> dict[str, Any]:
    """What a model's forward needs besides the ids; models pass unknown names on to the attention function."""
    return {"position_ids": layout.positions().unsqueeze(0).to(device), "pack": _Pack(layout, device)}


def takes_one_kernel(capability: tuple[int, int] | None, dtype: torch.dtype, head_size: int) -> bool:
    """Whether torch's variable-length attention takes this; ``capability`` is the CUDA device's, None on CPU.

    It is FlashAttention: float16 and bfloat16, Ampere and later, heads of at most 256 numbers and a multiple of 8
    (aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, mha_varlen_fwd). It refuses the rest.
    """
    if capability is None or capability < FLASH_CAPABILITY:
        return False
    return dtype in FLASH_FORMATS and head_size <= FLASH_LARGEST_HEAD and head_size % 8 == 0


class _Pack:
    """A layout with what attention needs of it, made once a pack and not once a layer."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.layout, self.device = layout, device
        self.capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
        seen = [layout.shared + rest for rest in layout.rests]
        keys = [layout.shared, *seen] if layout.shared else seen
        self.query_borders = _borders(layout.pieces, device)
        self.key_borders = _borders(keys, device)
        self._masks: dict[tuple[int, int | None], torch.Tensor | None] = {}

    def mask(self, rest: int, window: int | None) -> torch.Tensor | None:
        """True where a token of a document's rest may look; None where plain causal attention does it."""
        key = (rest, window)
        if key not in self._masks:
            shared = self.layout.shared
            plain = not shared and not (window and window < rest)
            self._masks[key] = None if plain else visible(shared, rest, window).to(self.device)
        return self._masks[key]

    def beginning_mask(self, window: int | None) -> torch.Tensor | None:
        """The same for the shared beginning."""
        key = (0, window)
        if key not in self._masks:
            shared = self.layout.shared
            cut = window and window < shared
            self._masks[key] = visible(0, shared, window).to(self.device) if cut else None
        return self._masks[key]


def visible(shared: int, rest: int, window: int | None) -> torch.Tensor:
    """(rest, shared + rest): which keys each token sees: those before it, itself, none beyond the window."""
    distance = torch.arange(shared, shared + rest).unsqueeze(1) - torch.arange(shared + rest)
    return (distance >= 0) & (distance < window) if window else distance >= 0


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
    pack: _Pack = kwargs["pack"]
    window = sliding_window if sliding_window and sliding_window < pack.layout.longest else None
    parts = _Parts(query, key, value, scaling, window)
    one = takes_one_kernel(pack.capability, query.dtype, query.shape[-1])
    return (_in_one_kernel(parts, pack) if one else _piece_by_piece(parts, pack)), None


@dataclass(frozen=True)
class _Parts:
    """Queries, keys and values, (1, heads, tokens, head size), and how they are looked at."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scale: float | None
    window: int | None  # tokens that one may look back at, itself included; None is all

    @property
    def groups(self) -> int:
        """Query heads that share one key head."""
        return self.query.shape[1] // self.key.shape[1]


def _in_one_kernel(parts: _Parts, pack: _Pack) -> torch.Tensor:
    """One kernel for the pack. Where queries are fewer than keys, it aligns them at the end, as is needed here."""
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 - CUDA only

    layout = pack.layout
    keys, values = (torch.cat(_seen(tensor, layout), dim=2) for tensor in (parts.key, parts.value))
    query, key, value = (tensor.squeeze(0).transpose(0, 1) for tensor in (parts.query, keys, values))
    output = varlen_attn(
        query,
        key,
        value,
        pack.query_borders,
        pack.key_borders,
        max(layout.pieces),
        layout.longest,
        scale=parts.scale,
        window_size=(parts.window - 1 if parts.window else -1, 0),
        enable_gqa=parts.groups > 1,
    )
    assert isinstance(output, torch.Tensor)
    return output.unsqueeze(0)


def _piece_by_piece(parts: _Parts, pack: _Pack) -> torch.Tensor:
    """One kernel a piece: the shared beginning by itself, then each document's rest over both."""
    if parts.groups > 1:
        key, value = (tensor.repeat_interleave(parts.groups, dim=1) for tensor in (parts.key, parts.value))
        parts = replace(parts, key=key, value=value)
    layout = pack.layout
    queries = torch.split(parts.query, layout.pieces, dim=2)
    outputs = []
    for index, (query, key, value) in enumerate(
        zip(queries, _seen(parts.key, layout), _seen(parts.value, layout), strict=True)
    ):
        beginning = bool(layout.shared) and index == 0
        mask = pack.beginning_mask(parts.window) if beginning else pack.mask(query.shape[2], parts.window)
        outputs.append(
            functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=mask is None, scale=parts.scale
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _seen(tensor: torch.Tensor, layout: Layout) -> list[torch.Tensor]:
    """Keys or values that each piece looks at: the shared ones and its own."""
    pieces = list(torch.split(tensor, layout.pieces, dim=2))
    if not layout.shared:
        return pieces
    shared, *rests = pieces
    return [shared, *(torch.cat([shared, rest], dim=2) for rest in rests)]


def _borders(lengths: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
