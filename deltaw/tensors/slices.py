"""A part of a stored tensor as a tensor of its own: one expert of a stack, gate or up of both, the other way round.

Two checkpoints may store the same weights in different pieces. What is cut here has the name, the shape and the
orientation that the other side stores, so that both are read in the same way.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from deltaw.types import Handle

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Slice:
    """A view of a stored tensor; a `Handle` itself.

    Attributes:
        name: What this part is called on its side.
        handle: The stored tensor.
        index: One index of its first dimension, None for all of it.
        transposed: Whether the matrix is turned round.
        rows: The rows of the matrix after it was turned round, None for all.
    """

    name: str
    handle: Handle
    index: int | None = None
    transposed: bool = False
    rows: range | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the part."""
        shape = self.handle.shape if self.index is None else self.handle.shape[1:]
        if self.transposed:
            shape = (shape[1], shape[0])
        return shape if self.rows is None else (len(self.rows), *shape[1:])

    @property
    def dtype(self) -> str:
        """The stored dtype."""
        return self.handle.dtype

    @property
    def nbytes(self) -> int:
        """The size of the part."""
        whole = prod(self.handle.shape)
        return self.handle.nbytes * prod(self.shape) // whole if whole else 0

    @property
    def storage(self) -> Hashable:
        """The memory of the stored tensor and what of it is taken."""
        return (self.handle.storage, self.index, self.rows)

    def read(self, rows: slice | None = None) -> Tensor:
        """The part as a tensor, or some of its rows.

        Raises:
            CheckpointError: The bytes cannot be read.
        """
        whole = self.handle.read() if self.index is None else self.handle.read(slice(self.index, self.index + 1))[0]
        part = whole.T if self.transposed else whole
        if self.rows is not None:
            part = part[self.rows.start : self.rows.stop : self.rows.step]
        return part if rows is None else part[rows]


@dataclass(frozen=True)
class Assembled:
    """A stack of experts or a fused layer that is stored in pieces; a `Handle` itself.

    Attributes:
        name: What the whole is called where it is one tensor.
        shape: Experts × rows × columns (experts × outputs for biases); without the experts for a fused layer.
        parts: For each piece where it belongs, and the tensor that it is.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[tuple[Slice, Handle], ...]

    @property
    def dtype(self) -> str:
        """The stored dtype of the pieces."""
        return self.parts[0][1].dtype

    @property
    def nbytes(self) -> int:
        """The size of all pieces."""
        return sum(handle.nbytes for _, handle in self.parts)

    @property
    def storage(self) -> Hashable:
        """The memories of its pieces."""
        return tuple(handle.storage for _, handle in self.parts)

    def read(self, rows: slice | None = None) -> Tensor:
        """The experts, or the rows of a fused layer, that are asked for, as one tensor.

        Raises:
            CheckpointError: The bytes of a piece cannot be read.
        """
        import torch

        if all(at.index is None for at, _ in self.parts):
            whole = self._layer()
            return whole if rows is None else whole[rows]
        start, stop, _ = (rows or slice(None)).indices(self.shape[0])
        out: Tensor | None = None
        for at, handle in self.parts:
            if at.index is None or not start <= at.index < stop:
                continue
            part = handle.read()
            if out is None:
                out = torch.empty((stop - start, *self.shape[1:]), dtype=part.dtype)
            place = out[at.index - start].T if at.transposed else out[at.index - start]
            where = slice(None) if at.rows is None else slice(at.rows.start, at.rows.stop, at.rows.step)
            place[where] = part
        return torch.empty((0, *self.shape[1:])) if out is None else out

    def _layer(self) -> Tensor:
        """A fused layer: its parts lie below each other."""
        import torch

        read = [(at.rows or range(self.shape[0]), handle.read()) for at, handle in self.parts]
        out = torch.empty(self.shape, dtype=read[0][1].dtype)
        for place, part in read:
            out[place.start : place.stop] = part
        return out
