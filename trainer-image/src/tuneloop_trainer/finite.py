"""Whether the weights in a safetensors file are numbers, told from their exponents: without torch, which takes a fetch
pod seconds of a core to import, and many fetch at once.

The format: 8 bytes length of the header, little-endian; the header, JSON; the tensors' bytes where it says they lie
(https://huggingface.co/docs/safetensors). Never keeps a tensor.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

# IEEE 754 and bfloat16: NaN and infinity are the numbers whose exponent has every bit set.
EXPONENTS: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}


def not_finite(path: Path) -> tuple[list[str], int]:
    """The tensors that hold NaN or infinity, by name, and how many there are in all; raises ``SafetensorError`` for a
    file that is not whole. Formats of other widths are not looked at.
    """
    with safe_open(path, "numpy"):
        pass  # checks the header against the file
    content = np.memmap(path, dtype=np.uint8, mode="r")
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    header.pop("__metadata__", None)
    return [name for name, entry in header.items() if _is_broken(content[start:], entry)], len(header)


def _is_broken(data: np.ndarray[Any, Any], entry: dict[str, Any]) -> bool:
    if entry["dtype"] not in EXPONENTS:
        return False
    kind, mask = EXPONENTS[entry["dtype"]]
    begin, end = entry["data_offsets"]
    bits = np.frombuffer(data[begin:end].tobytes(), dtype=kind)
    return bool(((bits & kind(mask)) == mask).any())
