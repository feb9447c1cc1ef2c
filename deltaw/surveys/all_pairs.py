"""All pairs of many adapters, from their sketches: one product of matrices for each independent sketch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from deltaw.surveys import sketches
from deltaw.surveys.table import UpdateTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kept = Callable[[int, slice], "NDArray[np.generic]"]  # rows of the sketches of an adapter


def sketched_cosines(
    table: UpdateTable, kept: Kept, *, memory: int, done: Callable[[int, int], None]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines over shared matrices, and the half-widths of their 95 % intervals, (N, N); NaN where nothing is shared.

    Args:
        table: Adapters by matrices.
        kept: The sketches of an adapter: those of some of its matrices, in its own order.
        memory: Bytes to work in.
        done: Called with how many units of work are finished, and of all.
    """
    N, K = table.index.shape
    cosine, half = (np.full((N, N), np.nan, dtype=np.float32) for _ in range(2))
    rows = max(1, min(N, memory // 2 // (4 * 4 * sketches.GROUPS * N)))
    together = max(1, min(K, memory // 4 // (2 * 4 * sketches.NUMBERS * N)))
    blocks, chunks = range(0, N, rows), range(0, K, together)
    own = _own(table, kept)
    for b, start in enumerate(blocks):
        mine = np.arange(start, min(start + rows, N))
        products = np.zeros((sketches.GROUPS, len(mine), N), dtype=np.float32)
        for c, first in enumerate(chunks):
            columns = np.arange(first, min(first + together, K))
            X = _weighted(table, kept, columns)
            for g in range(sketches.GROUPS):
                x = X[:, :, g].reshape(N, -1)
                products[g] += x[mine] @ x.T
            done(b * len(chunks) + c + 1, len(blocks) * len(chunks))
        cosine[mine], half[mine] = _intervals(table, products, own, mine)
    return cosine, half


def _scale(table: UpdateTable) -> NDArray[np.float64]:
    """‖ΔW_k‖ over ‖ΔW‖: the inner products of what is scaled so are within float32, whatever the adapters' sizes."""
    whole = np.sqrt((table.norms**2).sum(axis=1, keepdims=True))
    return np.asarray(table.norms / np.where(whole > 0, whole, 1))


def _weighted(table: UpdateTable, kept: Kept, columns: NDArray[np.int64]) -> NDArray[np.float32]:
    """The sketches of some matrices of all adapters, times their share of the norm: (N, columns, GROUPS, SIDE²)."""
    scale = _scale(table).astype(np.float32)
    out = np.zeros((len(table.index), len(columns), sketches.GROUPS, sketches.SIDE**2), dtype=np.float32)
    for i, at in enumerate(table.index[:, columns]):
        there = np.flatnonzero(at >= 0)
        if there.size:
            low = int(at[there].min())
            found = kept(i, slice(low, int(at[there].max()) + 1))
            out[i, there] = found[at[there] - low] * scale[i, columns[there], None, None]
    return out


def _own(table: UpdateTable, kept: Kept) -> NDArray[np.float32]:
    """‖X‖² of every sketch, scaled as above: (GROUPS, N, K)."""
    N, K = table.index.shape
    scale = _scale(table)
    out = np.zeros((sketches.GROUPS, N, K), dtype=np.float32)
    for i in range(N):
        at = np.flatnonzero(table.has[i])
        if at.size:
            found = kept(i, slice(0, int(table.index[i].max()) + 1))[table.index[i, at]].astype(np.float32)
            out[:, i, at] = np.einsum("kgi,kgi->gk", found, found) * scale[i, at] ** 2
    return out


def _intervals(
    table: UpdateTable, products: NDArray[np.float32], own: NDArray[np.float32], mine: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The cosines of some adapters with all, row by row: what both have decides their norms."""
    squares = _scale(table) ** 2
    has = table.has.astype(np.float64)
    cosine, half = (np.full((len(mine), len(has)), np.nan, dtype=np.float32) for _ in range(2))
    alike = bool((table.has == table.has[0]).all())
    whole = own.sum(axis=2, dtype=np.float64), squares.sum(axis=1)
    for r, i in enumerate(mine.tolist()):
        if alike:
            own_b, b_sq = whole
            own_a, a_sq = np.repeat(own_b[:, i : i + 1], len(has), axis=1), np.repeat(b_sq[i], len(has))
        else:
            own_a, a_sq = own[:, i].astype(np.float64) @ has.T, has @ squares[i]
            own_b, b_sq = own @ has[i], squares @ has[i]
        value, width = sketches.inner(products[:, r].astype(np.float64), own_a, own_b, a_sq, b_sq)
        norm = np.sqrt(a_sq * b_sq)
        with np.errstate(divide="ignore", invalid="ignore"):
            cosine[r], half[r] = np.clip(value / norm, -1, 1), width / norm
    return cosine, half
