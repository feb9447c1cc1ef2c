"""What llama.cpp's converter did to tensors beside renaming them, undone while they are read."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaw.errors import CheckpointError
from deltaw.types import Handle

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _Changed:
    """A stored tensor that is changed while it is read; it keeps its name, shape and size."""

    handle: Handle

    @property
    def name(self) -> str:
        """The stored tensor's name."""
        return self.handle.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The stored shape."""
        return self.handle.shape

    @property
    def dtype(self) -> str:
        """The stored dtype."""
        return self.handle.dtype

    @property
    def nbytes(self) -> int:
        """The stored size."""
        return self.handle.nbytes


@dataclass(frozen=True)
class Unpermuted(_Changed):
    """Queries or keys with their rows as transformers has them; a `Handle` itself.

    transformers rotates the first half of a head against the second, ggml every row against the next: the converter
    made (heads, 2, d/2) to (heads, d/2, 2). Rows of codes are rows of bytes, and are moved in the same way.

    Attributes:
        handle: The tensor as it is stored.
        heads: How many heads its rows are.
    """

    heads: int

    @property
    def storage(self) -> Hashable:
        """That of the stored tensor, in another order."""
        return ("unpermuted", self.heads, self.handle.storage)

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """The tensor, or some rows of it: the heads that they lie in are read.

        Raises:
            CheckpointError: The bytes cannot be read.
        """
        start, stop, _ = (rows or slice(None)).indices(self.shape[0])
        size = self.shape[0] // self.heads
        first, last = start // size, -(-stop // size)
        if stop <= start:
            return self.handle.read(slice(0, 0))
        stored = self.handle.read(slice(first * size, last * size))
        whole = stored.reshape(last - first, size // 2, 2, *stored.shape[1:]).transpose(1, 2).reshape(stored.shape)
        return whole[start - first * size : stop - first * size]


def unpermuted(handle: Handle, heads: int, source: str) -> Handle:
    """Queries or keys as transformers has them.

    Raises:
        CheckpointError: Its rows are not so many heads.
    """
    rows = handle.shape[0] if handle.shape else 0
    if heads <= 0 or rows % heads or rows // heads % 2:
        raise CheckpointError(_no_heads(handle, heads, source))
    return Unpermuted(handle, heads)


def _no_heads(handle: Handle, heads: int, source: str) -> str:
    rows = handle.shape[0] if handle.shape else 0
    return (
        f"{source}: {handle.name!r} has {rows:,} rows, which are not the {heads:,} heads that its metadata says; "
        "convert the original checkpoint again"
    )


@dataclass(frozen=True)
class Interleaved(_Changed):
    """Fused queries, keys and values in transformers' order; a `Handle` itself.

    The converter stores all queries, all keys, all values. Falcon, Bloom and GPT-NeoX have them group by group: the
    queries that share a key, the key, the value.

    Attributes:
        handle: The tensor as it is stored.
        groups: How many keys there are.
        queries: How many queries share each.
    """

    groups: int
    queries: int

    @property
    def storage(self) -> Hashable:
        """That of the stored tensor, in another order."""
        return ("interleaved", self.groups, self.queries, self.handle.storage)

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """The tensor, or some rows of it. All of them are read.

        Raises:
            CheckpointError: The bytes cannot be read.
        """
        import torch

        size = self.shape[0] // (self.groups * (self.queries + 2))
        parts = torch.split(torch.arange(self.shape[0]), [self.groups * n * size for n in (self.queries, 1, 1)])
        order = torch.cat([part.view(self.groups, -1) for part in parts], dim=1).flatten()
        return self.handle.read()[order[rows or slice(None)]]


def interleaved(handle: Handle, heads: int, keys: int, source: str) -> Handle:
    """Fused queries, keys and values as transformers has them.

    Raises:
        CheckpointError: Its rows are not so many heads.
    """
    rows = handle.shape[0] if handle.shape else 0
    if min(heads, keys) <= 0 or heads % keys or rows % (heads + 2 * keys):
        raise CheckpointError(_no_heads(handle, heads, source))
    return Interleaved(handle, keys, heads // keys)


@dataclass(frozen=True)
class Shifted(_Changed):
    """A norm's weight without what the converter added to it; a `Handle` itself."""

    offset: float

    @property
    def storage(self) -> Hashable:
        """That of the stored tensor, moved."""
        return ("shifted", self.offset, self.handle.storage)

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """The weight, or some rows of it.

        Raises:
            CheckpointError: The bytes cannot be read.
        """
        return self.handle.read(rows) - self.offset
