"""What a correct merge holds: W0 + ΔW in blocks of rows, as the base stores the tensor.

Factored updates are multiplied block by block, so that no array of the tensor's size is ever formed for them. With
each block comes the magnitude that its arithmetic passed through, which bounds the rounding of whoever merged in the
storage dtype: |B|·|A|, or for dense methods |W0| + |ΔW| and the root mean square of its row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from deltaw.tensors.slices import Slice
from deltaw.types import Factors, Handle, Pair, Update

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1 << 17  # entries: 1 MiB of float64, so that the temporaries of a block stay in the cache


class Expected(NamedTuple):
    """Some rows of one tensor; all in float64 except `read`.

    Attributes:
        base: W0.
        delta: ΔW, None where the adapter does not touch these rows.
        magnitude: What the arithmetic passed through, entry by entry; None with `delta`.
        read: The same rows of another tensor of this shape, as stored.
    """

    base: Tensor
    delta: Tensor | None
    magnitude: Tensor | None
    read: Callable[[Handle], Tensor]


Rows = Callable[[slice], tuple["Tensor", "Tensor"]]


def expected_blocks(base: Handle, pairs: Sequence[Pair], multiple: int = 1) -> Iterator[Expected]:
    """A tensor of the base with the updates of `pairs` on it, in blocks of rows.

    Args:
        base: The stored tensor.
        pairs: Its updates.
        multiple: Of how many rows a block is, but for the last; 0 for all rows at once.

    Raises:
        CheckpointError: The base cannot be read.
        AdapterError: An update does not fit.
    """
    stacked = any(_expert(p) is not None for p in pairs)
    for expert in range(base.shape[0]) if stacked else (None,):
        rows = [_rows(p) for p in pairs if _expert(p) == expert]
        length = base.shape[1] if stacked else (base.shape[0] if base.shape else 1)
        width = max(1, _entries(base) // max(1, length * (base.shape[0] if stacked else 1)))
        step = -(-max(1, BLOCK // width) // multiple) * multiple if multiple else max(1, length)
        for start in range(0, length, step):
            yield _block(base, rows, expert, slice(start, min(start + step, length)))


def _entries(base: Handle) -> int:
    count = 1
    for n in base.shape:
        count *= n
    return count


def _block(base: Handle, updates: Sequence[Rows], expert: int | None, rows: slice) -> Expected:
    def read(handle: Handle) -> Tensor:
        if expert is not None:
            return handle.read(slice(expert, expert + 1))[0][rows]
        return handle.read(rows if handle.shape else None)

    W0 = read(base).double()
    delta = magnitude = None
    for update in updates:
        d, size = update(rows)
        d, size = d.reshape(W0.shape), size.reshape(W0.shape)
        delta = d if delta is None else delta + d
        magnitude = size if magnitude is None else magnitude + size
    return Expected(W0, delta, magnitude, read)


def _expert(pair: Pair) -> int | None:
    """The expert that a pair changes, where the base stores them as one tensor."""
    return pair.base.index if isinstance(pair.base, Slice) else pair.view.expert


def _inside(pair: Pair, piece: Slice) -> Rows:
    """The same for a piece of an expert or of a fused layer, as rows of the whole."""
    import torch

    found = []
    for part in _matrix_rows(pair)(slice(0, piece.shape[0])):
        whole = torch.zeros(piece.handle.shape[0 if piece.index is None else 1 :], dtype=part.dtype)
        at = slice(None) if piece.rows is None else slice(piece.rows.start, piece.rows.stop, piece.rows.step)
        (whole.T if piece.transposed else whole)[at] = part.reshape(piece.shape)
        found.append(whole)
    return lambda rows: (found[0][rows], found[1][rows])


def _rows(pair: Pair) -> Rows:
    """ΔW of some rows of the stored tensor, and the magnitude behind it."""
    return _inside(pair, pair.base) if isinstance(pair.base, Slice) else _matrix_rows(pair)


def _matrix_rows(pair: Pair) -> Rows:
    from deltaw.tensors.matrix import matrix

    update = cast("Update", pair.ft)
    value = update.delta(matrix(pair.base, pair.view) if update.needs_base and pair.base is not None else None)
    if isinstance(value, Factors):
        left, right = (value.A.T, value.B.T) if pair.view.transposed else (value.B, value.A)
        return lambda rows: (left[rows] @ right, left[rows].abs() @ right.abs())
    stored = value.T if pair.view.transposed and value.ndim == 2 else value
    if pair.base is None or (value.ndim < 2 and not update.needs_base):
        return lambda rows: (stored[rows], stored[rows].abs())
    W0 = matrix(pair.base, pair.view)
    W0 = W0.T if pair.view.transposed else W0
    return lambda rows: (stored[rows], _mixed(W0[rows].double().abs() + stored[rows].abs()))


def _mixed(size: Tensor) -> Tensor:
    """Entries and the root mean square of their row: rotations and products mix the entries of a row."""
    return size + (size * size).mean(dim=-1, keepdim=True).sqrt()
