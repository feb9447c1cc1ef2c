"""Inner products and overlaps of leading directions, exactly, for a list of pairs.

With thin SVDs ΔW = U·diag(s)·Vᵀ of both, ⟨ΔW, ΔW'⟩ = Σ_ij s_i·s'_j·(UᵀU')_ij·(VᵀV')_ij, which is
tr((A'Aᵀ)(BᵀB')) of the factors. The same small products hold φ. The adapters of a tile have the same few matrices in
memory; what is read streams through, matrix by matrix.

φ(i, j) = ‖U_iᵀU_j‖F²/r, r the smaller of the two ranks and at most 16 (Hu et al. 2021, §7.2); of random ones: r/d.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deltaw.surveys.look import TOP
from deltaw.surveys.table import UpdateTable
from deltaw.types import Matrix as Array

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

BLOCK = 16  # adapters that are multiplied with all others at once, where all pairs are wanted
TOGETHER = 64  # pairs that are multiplied at once, where some are wanted
FLOAT = 8  # bytes
PRODUCTS = 16  # arrays as large as the products of a block that are alive at a time


@dataclass(frozen=True)
class Thin:
    """A thin SVD, or the leading part of one where the update is dense: U (m, r), s (r,), V (n, r)."""

    U: Tensor
    s: Tensor
    V: Tensor


@dataclass(frozen=True)
class PairSums:
    """Of each pair and kind of module, sums over the matrices that both change, (pairs, kinds).

    Attributes:
        inner: ⟨ΔW, ΔW'⟩ over those of which both are factored.
        left, right: φ of outputs and of inputs.
        null: The mean of both that random directions would have.
        count: How many matrices there are.
    """

    inner: Array
    left: Array
    right: Array
    null: Array
    count: Array


Read = Callable[[int, int], Thin]


def pair_sums(
    table: UpdateTable, pairs: NDArray[np.int64], read: Read, *, memory: int, done: Callable[[int, int], None]
) -> PairSums:
    """Sums over the matrices of each pair.

    Args:
        table: Adapters by matrices.
        pairs: (P, 2) numbers of adapters; neighbours in the list should share adapters.
        read: The SVD of a matrix, by the numbers of adapter and matrix; called from several threads.
        memory: Bytes that the vectors of a tile may take.
        done: Called with the number of matrices that are finished, and of all.

    Raises:
        DeltaWError: A factor cannot be read any more.
    """
    kinds = list(table.kinds.values())
    sums = PairSums(*(np.zeros((len(pairs), len(kinds))) for _ in range(5)))
    finished = 0
    if not len(pairs):
        return sums
    with one_thread_each() as pool:
        for columns in _chunks(table, memory):
            of_kind = [next(i for i, k in enumerate(kinds) if k[c]) for c in columns]
            for tile, chosen in _tiles(table, pairs, columns, memory):
                _tile(_load(table, tile, columns, read, pool), tile, pairs, of_kind, chosen, memory, sums, pool)
            finished += len(columns)
            done(finished, len(table.columns))
    return sums


@contextmanager
def one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """As many threads as cores, each of which multiplies alone: the products are many and small."""
    import torch
    from threadpoolctl import threadpool_limits

    allowed = torch.get_num_threads()
    try:
        with (
            threadpool_limits(1, user_api="blas"),
            ThreadPoolExecutor(allowed, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            yield pool
    finally:
        torch.set_num_threads(allowed)  # MKL's number is the process's, not the thread's


def _bytes(table: UpdateTable, adapters: NDArray[np.int64], column: int) -> int:
    """Bytes of the vectors of one matrix of some adapters."""
    m, n = table.columns[column].shape
    widest = int(np.where(table.dense[adapters, column], TOP, table.ranks[adapters, column]).max(initial=1))
    return len(adapters) * (m + n) * min(widest, m, n) * FLOAT


def _chunks(table: UpdateTable, memory: int) -> Iterator[list[int]]:
    """Matrices of one shape that all adapters may hold at a time; at least one."""
    everyone = np.arange(len(table.index))
    by_shape: dict[tuple[int, int], list[int]] = {}
    for k, column in enumerate(table.columns):
        by_shape.setdefault(column.shape, []).append(k)
    for members in by_shape.values():
        chunk: list[int] = []
        size = 0
        for k in members:
            need = _bytes(table, everyone, k)
            if chunk and size + need > memory:
                yield chunk
                chunk, size = [], 0
            chunk.append(k)
            size += need
        yield chunk


def _tiles(
    table: UpdateTable, pairs: NDArray[np.int64], columns: Sequence[int], memory: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Adapters that are held at a time, and which pairs lie among them: all at once where they fit."""
    involved = np.unique(pairs)
    need = sum(_bytes(table, involved, k) for k in columns)
    if need <= memory or len(involved) <= 2:
        yield involved, np.arange(len(pairs))
        return
    size = max(1, int(len(involved) * memory / need) // 2)  # two blocks at a time
    _, first = np.unique(pairs.reshape(-1), return_index=True)
    order = np.empty(int(involved.max()) + 1, dtype=np.int64)
    order[involved[np.argsort(first, kind="stable")]] = np.arange(len(involved)) // size
    blocks = np.sort(order[pairs], axis=1)
    for block in np.unique(blocks, axis=0):
        chosen = np.flatnonzero((blocks == block).all(axis=1))
        yield np.unique(pairs[chosen]), chosen


def _tile(
    loaded: PaddedVectors,
    tile: NDArray[np.int64],
    pairs: NDArray[np.int64],
    of_kind: Sequence[int],
    chosen: NDArray[np.int64],
    memory: int,
    sums: PairSums,
    pool: ThreadPoolExecutor,
) -> None:
    """Add what the pairs of one tile have in some matrices."""
    a, b = np.searchsorted(tile, pairs[chosen]).T  # a tile is sorted
    k, N, r = loaded.s.shape

    def into_sums(mine: NDArray[np.int64], found: Sequence[Array], at: tuple[NDArray[np.int64], ...]) -> None:
        # Pairs of its own: no two threads write to one place.
        for into, values in zip((sums.inner, sums.left, sums.right, sums.null, sums.count), found, strict=True):
            for j, kind in enumerate(of_kind):
                into[chosen[mine], kind] += values[j][at]

    def block_of_all(start: int) -> None:
        mine = np.flatnonzero((a >= start) & (a < start + block))
        if mine.size:
            others, back = np.unique(b[mine], return_inverse=True)
            rows = np.arange(start, min(start + block, len(tile)))
            left, right = (_cross(x, rows, others) for x in (loaded.U, loaded.V))
            into_sums(mine, _products(loaded, left, right, rows[:, None], others[None]), (a[mine] - start, back))

    def some_pairs(start: int) -> None:
        mine = np.arange(start, min(start + batch, len(chosen)))
        left, right = (x[:, a[mine]] @ x[:, b[mine]].mT for x in (loaded.U, loaded.V))
        into_sums(mine, _products(loaded, left, right, a[mine], b[mine]), (np.arange(len(mine)),))

    if len(chosen) >= len(tile) * (len(tile) - 1) // 4:
        block = min(BLOCK, max(1, memory // (PRODUCTS * FLOAT * k * N * r * r)))
        list(pool.map(block_of_all, range(0, len(tile), block)))
    else:
        batch = max(1, min(TOGETHER, memory // (PRODUCTS * FLOAT * k * r * (loaded.U.shape[-1] + loaded.V.shape[-1]))))
        list(pool.map(some_pairs, range(0, len(chosen), batch)))


@dataclass(frozen=True)
class PaddedVectors:
    """Vectors of k matrices of N adapters, zero-padded to r: U (k, N, r, m), s (k, N, r), V (k, N, r, n).

    `ranks` (k, N) is 0 where an adapter lacks a matrix; `exact` (k, N) where s holds all of its singular values.
    """

    U: Tensor
    s: Tensor
    V: Tensor
    ranks: NDArray[np.int64]
    exact: NDArray[np.bool_]


def _load(
    table: UpdateTable, tile: NDArray[np.int64], columns: Sequence[int], read: Read, pool: ThreadPoolExecutor
) -> PaddedVectors:
    import torch

    m, n = table.columns[columns[0]].shape
    at = np.ix_(tile, np.array(columns, dtype=np.int64))
    has, dense = table.has[at].T, table.dense[at].T
    exact = has & ~dense
    stored = np.where(dense, TOP, table.ranks[at].T)
    ranks = np.where(has, np.minimum(stored, min(m, n)), 0)
    widest = max(1, int(ranks.max()))
    k, N = ranks.shape
    U, V = torch.zeros(k, N, widest, m, dtype=torch.float64), torch.zeros(k, N, widest, n, dtype=torch.float64)
    s = torch.zeros(k, N, widest, dtype=torch.float64)

    def one(place: tuple[int, int]) -> None:
        j, i = place
        thin = read(int(tile[i]), columns[j])
        r = len(thin.s)
        U[j, i, :r], V[j, i, :r], s[j, i, :r] = thin.U.T, thin.V.T, thin.s
        ranks[j, i] = r

    list(pool.map(one, ((j, i) for j, i in np.argwhere(has).tolist())))
    return PaddedVectors(U, s, V, ranks, exact)


def _products(
    of: PaddedVectors, left: Tensor, right: Tensor, a: NDArray[np.int64], b: NDArray[np.int64]
) -> tuple[Array, Array, Array, Array, Array]:
    """Inner products, φ left and right, their null, and whether both have the matrix: each (k, *pairs).

    Args:
        of: Vectors of the adapters.
        left, right: UᵀU' and VᵀV' of the pairs, (k, *pairs, r, r).
        a, b: The numbers of both adapters; together of the shape of the pairs.
    """
    import torch

    m, n = of.U.shape[-1], of.V.shape[-1]
    weights = of.s[:, a][..., :, None] * of.s[:, b][..., None, :]
    ra, rb = of.ranks[:, a], of.ranks[:, b]
    both = (ra > 0) & (rb > 0)
    inner = (left * right * weights).sum((-2, -1)).numpy() * (of.exact[:, a] & of.exact[:, b])
    leading = np.minimum(np.minimum(ra, rb), TOP)
    at = torch.from_numpy(np.maximum(leading - 1, 0))
    overlaps = []
    for x in (left, right):
        top = x[..., :TOP, :TOP].square().cumsum(-2).cumsum(-1)
        width = top.shape[-1]
        found = top.reshape(*top.shape[:-2], -1).gather(-1, (at * (width + 1))[..., None])[..., 0]
        overlaps.append(np.minimum(found.numpy() / np.maximum(leading, 1), 1.0) * both)
    null = leading * (1 / m + 1 / n) / 2 * both
    return inner, overlaps[0], overlaps[1], null, both.astype(np.float64)


def _cross(x: Tensor, rows: NDArray[np.int64], others: NDArray[np.int64]) -> Tensor:
    """The products of vectors: (k, N, r, d) → (k, rows, others, r, r)."""
    k, _, r, d = x.shape
    a = x[:, int(rows[0]) : int(rows[-1]) + 1].reshape(k, -1, d)
    whole = len(others) == int(others[-1]) + 1 - int(others[0])  # a range of them is not copied
    b = (x[:, int(others[0]) : int(others[-1]) + 1] if whole else x[:, others]).reshape(k, -1, d)
    return (a @ b.mT).reshape(k, len(rows), r, len(others), r).transpose(2, 3)
