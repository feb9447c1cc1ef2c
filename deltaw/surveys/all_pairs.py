"""All pairs of many adapters, from their sketches: one product of matrices for each independent sketch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from deltaw.surveys import sketches
from deltaw.surveys.table import UpdateTable

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray
    from torch import Tensor

Kept = Callable[[int], "NDArray[np.generic]"]  # the sketches of an adapter, in its own order: (K, GROUPS, SIDE²) halves
HALF, FLOAT = 2, 4  # bytes
ROWS = 8  # adapters whose intervals are computed together


def sketched_cosines(
    table: UpdateTable, kept: Kept, scratch: Path, *, memory: int, done: Callable[[int, int], None]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines over shared matrices, and the half-widths of their 95 % intervals, (N, N); NaN where nothing is shared.

    Args:
        table: Adapters by matrices.
        kept: The sketches of an adapter; asked for once.
        scratch: A file that is written and removed, as large as all sketches together.
        memory: Bytes to work in.
        done: Called with how many units of work are finished, and of all.

    Raises:
        OSError: The scratch file cannot be written.
    """
    import torch

    N, K = table.index.shape
    cosine, half = (np.full((N, N), np.nan, dtype=np.float32) for _ in range(2))
    rows = max(1, min(N, memory // 2 // (FLOAT * (sketches.GROUPS + 1) * N)))
    together = max(1, min(K, memory // 4 // ((HALF + FLOAT) * sketches.NUMBERS * N)))
    blocks, chunks = range(0, N, rows), range(0, K, together)
    scale = _scale(table)
    with scratch.open("w+b") as turned:
        own = _turned(table, kept, turned) * scale**2
        for b, start in enumerate(blocks):
            mine, rest = slice(start, min(start + rows, N)), slice(start, N)  # those before are done: it is symmetric
            products = torch.zeros(sketches.GROUPS, mine.stop - start, N - start)
            for c, first in enumerate(chunks):
                X = _weighted(turned, scale[rest], first, min(together, K - first), start)
                for g in range(sketches.GROUPS):
                    x = X[:, :, g].transpose(0, 1).reshape(N - start, -1)
                    products[g].addmm_(x[: mine.stop - start], x.T)
                done(b * len(chunks) + c + 1, len(blocks) * len(chunks))
            for r in range(start, mine.stop, ROWS):
                some = slice(r, min(r + ROWS, mine.stop))
                of = products[:, r - start : some.stop - start].double().numpy()
                cosine[some, rest], half[some, rest] = _intervals(table, of, own, scale, some, rest)
            for found in (cosine, half):
                found[rest, mine] = found[mine, rest].T
    scratch.unlink()
    return cosine, half


def _scale(table: UpdateTable) -> NDArray[np.float64]:
    """‖ΔW_k‖ over ‖ΔW‖: the inner products of what is scaled so are within float32, whatever the adapters' sizes."""
    whole = np.sqrt((table.norms**2).sum(axis=1, keepdims=True))
    return np.asarray(table.norms / np.where(whole > 0, whole, 1))


def _turned(table: UpdateTable, kept: Kept, turned: BinaryIO) -> NDArray[np.float64]:
    """Write the sketches matrix by matrix, (K, N, GROUPS, SIDE²), so that no file is opened once for each matrix.

    Returns:
        ‖X‖² of every sketch, (GROUPS, N, K).

    Raises:
        OSError: The file cannot be written.
    """
    N, K = table.index.shape
    size = HALF * sketches.NUMBERS
    turned.truncate(K * N * size)  # zeros where an adapter lacks a matrix
    own = np.zeros((sketches.GROUPS, N, K))
    for i in range(N):
        at = np.flatnonzero(table.has[i])
        found = kept(i)[table.index[i, at]] if at.size else np.zeros((0, sketches.GROUPS, 1), dtype=np.float16)
        for k, one in zip(at.tolist(), found, strict=True):
            turned.seek((k * N + i) * size)
            turned.write(one.tobytes())
        wide = found.astype(np.float32)
        own[:, i, at] = np.einsum("kgi,kgi->gk", wide, wide)
    turned.flush()
    return own


def _weighted(turned: BinaryIO, scale: NDArray[np.float64], first: int, count: int, start: int) -> Tensor:
    """The sketches of some matrices of the adapters from `start` on, times their share of the norm.

    Returns:
        (count, adapters, GROUPS, SIDE²), float32.
    """
    import torch

    adapters = len(scale)
    N = start + adapters
    out = torch.empty(count, adapters, sketches.GROUPS, sketches.SIDE**2)
    for c in range(count):
        at = ((first + c) * N + start) * HALF * sketches.NUMBERS
        turned.seek(at)
        found = np.frombuffer(turned.read(adapters * HALF * sketches.NUMBERS), dtype=np.float16)
        out[c] = torch.from_numpy(found.copy()).view(out.shape[1:])
    return out * torch.from_numpy(scale[:, first : first + count].T.copy()).float()[:, :, None, None]


def _intervals(
    table: UpdateTable,
    products: NDArray[np.float64],
    own: NDArray[np.float64],
    scale: NDArray[np.float64],
    mine: slice,
    rest: slice,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The cosines of some adapters with others, (mine, rest): what both have decides their norms."""
    has, squares = table.has.astype(np.float64), scale**2
    a_sq, b_sq = squares[mine] @ has[rest].T, has[mine] @ squares[rest].T
    own_a, own_b = own[:, mine] @ has[rest].T, has[mine] @ own[:, rest].swapaxes(1, 2)
    value, width = sketches.inner(products, own_a, own_b, a_sq, b_sq)
    with np.errstate(divide="ignore", invalid="ignore"):
        norm = np.sqrt(a_sq * b_sq)
        return np.clip(value / norm, -1, 1), width / norm
