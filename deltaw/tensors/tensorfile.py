"""A safetensors file written tensor by tensor, so that no more than one of them is in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

    from deltaw.types import JsonValue

WORDS = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
ALIGNMENT = 8  # bytes: where the first tensor begins


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to be written.

    Attributes:
        name: Its name in the file.
        dtype: By torch's name.
        shape: Its shape.
        read: Makes it, when its turn comes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Its size."""
        import torch

        itemsize: int = getattr(torch, self.dtype).itemsize
        return prod(self.shape) * itemsize


def raw(tensor: Tensor) -> bytes | memoryview:
    """The bytes of a tensor, row by row."""
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def header(entries: Iterable[OutputTensor], metadata: dict[str, str] | None = None) -> bytes:
    """The header of a file with these tensors one after the other."""
    about: dict[str, JsonValue] = {"__metadata__": metadata or {"format": "pt"}}
    at = 0
    for entry in entries:
        about[entry.name] = {
            "dtype": WORDS[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.nbytes],
        }
        at += entry.nbytes
    text = json.dumps(about, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_tensors(path: Path, entries: Iterable[OutputTensor], metadata: dict[str, str] | None = None) -> None:
    """Write a file, whole or not at all.

    Args:
        path: The file.
        entries: Its tensors; the widest are written first, as every offset has to be a multiple of the item's size.
        metadata: Texts of the header; by default what names PyTorch as the framework.

    Raises:
        OSError: It cannot be written.
    """
    import torch

    ordered = sorted(entries, key=lambda e: (-getattr(torch, e.dtype).itemsize, e.name))
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(header(ordered, metadata))
        for entry in ordered:
            tensor = entry.read()
            assert tuple(tensor.shape) == entry.shape, (entry.name, tensor.shape)
            assert tensor.dtype == getattr(torch, entry.dtype), (entry.name, tensor.dtype)
            file.write(raw(tensor))
