"""How alike two adapters are on what both change: cosine, φ of leading directions, signs, energy of their sum.

* cosine: ⟨ΔW, ΔW'⟩ / (‖ΔW‖ ‖ΔW'‖) over the matrices that both change; exact where both are factored, else with the
  interval of their sketches. Independent updates: 0 ± √Σ‖ΔW_k‖²‖ΔW'_k‖²/(m_k n_k) over the norms (`cosine_null`).
* overlap: φ of the leading directions, the mean of outputs and inputs, averaged over matrices.
* sign_disagreement: the share of entries, those that are 0 in one aside, whose signs differ; from sampled entries.
* energy_ratio: ‖ΔW + ΔW'‖² / (‖ΔW‖² + ‖ΔW'‖²) over all matrices of both; 1 where they are orthogonal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deltaw.surveys import sketches
from deltaw.surveys.exact import PairSums, Read, pair_sums
from deltaw.surveys.table import UpdateTable
from deltaw.types import Matrix as Array
from deltaw.types import Vector

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution
MEASURES = (
    *("cosine", "cosine_low", "cosine_high", "cosine_null", "overlap", "overlap_left", "overlap_right"),
    *("overlap_null", "sign_disagreement", "sign_disagreement_low", "sign_disagreement_high", "energy_ratio"),
)
SHARED = ("matrices", "shared_a", "shared_b")
FIRST = ("cosine", "cosine_low", "cosine_high", "overlap", "sign_disagreement", "energy_ratio")  # the contract's
COLUMNS = ("a", "b", *FIRST, *(c for c in MEASURES if c not in FIRST), *SHARED, "exact")
BY_KIND = ("a", "b", "kind", *MEASURES, "matrices")
Tensors = Callable[[int, str], "NDArray[np.generic]"]  # of an adapter, by the name they were kept under


@dataclass(frozen=True)
class Inner:
    """Inner products of pairs by kind of module, (pairs, kinds + 1): the last column is all kinds together.

    Attributes:
        value: ⟨ΔW, ΔW'⟩ over shared matrices.
        half: Half of the 95 % interval's width; 0 where it is exact.
    """

    value: Array
    half: Array


def compare_pairs(
    table: UpdateTable,
    pairs: NDArray[np.int64],
    read: Read,
    tensors: Tensors,
    names: Sequence[str],
    *,
    memory: int,
    done: Callable[[int, int], None],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Everything of some pairs: over all modules, and by kind of module.

    Args:
        table: Adapters by matrices.
        pairs: (P, 2) numbers of adapters.
        read: The SVD of one matrix.
        tensors: What was kept of an adapter.
        names: Of the adapters.
        memory: Bytes for the vectors that are held at a time.
        done: Called with matrices finished and in all.

    Raises:
        DeltaWError: What the pairs are made of cannot be read.
    """
    import pandas as pd

    sums = pair_sums(table, pairs, read, memory=memory, done=done)
    kinds = list(table.kinds)
    inner = _inner(table, pairs, sums, tensors)
    disagree = sign_disagreement(table, pairs, tensors)
    a, b = (np.array(names, dtype=object)[pairs[:, side]] for side in (0, 1))
    everything = np.ones(len(table.columns), dtype=np.bool_)
    whole = {"a": a, "b": b, **_measures(table, pairs, sums, inner, disagree, everything, -1)}
    whole |= _shared(table, pairs) | {"exact": inner.half[:, -1] == 0}
    parts = []
    for j, kind in enumerate(kinds):
        rows = {"a": a, "b": b, "kind": kind, **_measures(table, pairs, sums, inner, disagree, table.kinds[kind], j)}
        frame = pd.DataFrame(rows | {"matrices": sums.count[:, j].astype(np.int64)})
        parts.append(frame[frame["matrices"] > 0])
    by_kind = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(BY_KIND))
    order = ["a", "b", "kind"]
    return pd.DataFrame(whole)[list(COLUMNS)], by_kind[list(BY_KIND)].sort_values(order, ignore_index=True)


def _inner(table: UpdateTable, pairs: NDArray[np.int64], sums: PairSums, tensors: Tensors) -> Inner:
    """The exact part, and the sketched part where an update is dense."""
    shape = (len(pairs), len(table.kinds) + 1)
    value, half = np.zeros(shape), np.zeros(shape)
    value[:, :-1], value[:, -1] = sums.inner, sums.inner.sum(axis=1)
    some = np.flatnonzero(table.dense[pairs].any(axis=(1, 2)))
    if some.size:
        more, width = _sketched(table, pairs[some], tensors)
        value[some] += more
        half[some] = width
    return Inner(value, half)


def _sketched(table: UpdateTable, pairs: NDArray[np.int64], tensors: Tensors) -> tuple[Array, Array]:
    """Inner products over the matrices of which one side at least is dense, from the sketches."""
    kinds = np.array([*table.kinds.values(), np.ones(len(table.columns), dtype=np.bool_)])  # (kinds + 1, K)
    products, own_a, own_b = (np.zeros((sketches.GROUPS, len(pairs), len(kinds))) for _ in range(3))
    sq_a, sq_b = np.zeros((len(pairs), len(kinds))), np.zeros((len(pairs), len(kinds)))
    kept: tuple[int, Array] = (-1, np.zeros(0))
    for p, (a, b) in enumerate(pairs.tolist()):
        shared = table.has[a] & table.has[b] & (table.dense[a] | table.dense[b])
        if not shared.any():
            continue
        if kept[0] != a:
            kept = a, tensors(a, "sketch").astype(np.float64)
        na, nb = table.norms[a][shared], table.norms[b][shared]
        X = kept[1][table.index[a][shared]] * na[:, None, None]
        Y = tensors(b, "sketch")[table.index[b][shared]].astype(np.float64) * nb[:, None, None]
        of_kind = kinds[:, shared].astype(np.float64)  # (kinds + 1, shared)
        for into, left, right in ((products, X, Y), (own_a, X, X), (own_b, Y, Y)):
            into[:, p] = (of_kind @ np.einsum("kgi,kgi->kg", left, right)).T
        sq_a[p], sq_b[p] = of_kind @ na**2, of_kind @ nb**2
    value, half = np.zeros_like(sq_a), np.zeros_like(sq_a)
    for j in range(len(kinds)):
        value[:, j], half[:, j] = sketches.inner(products[..., j], own_a[..., j], own_b[..., j], sq_a[:, j], sq_b[:, j])
    return value, half


def energies(table: UpdateTable, pairs: NDArray[np.int64], columns: NDArray[np.bool_]) -> tuple[Vector, Vector]:
    """‖ΔW‖² of both sides of each pair over those of some matrices that both change."""
    squares, has = table.norms[:, columns] ** 2, table.has[:, columns].astype(np.float64)
    a, b = pairs.T
    return np.einsum("pk,pk->p", squares[a], has[b]), np.einsum("pk,pk->p", squares[b], has[a])


def _measures(
    table: UpdateTable,
    pairs: NDArray[np.int64],
    sums: PairSums,
    inner: Inner,
    disagree: Disagreement,
    columns: NDArray[np.bool_],
    j: int,
) -> dict[str, Vector]:
    """The columns of the tables over some matrices: those of kind j, or all (−1)."""
    a_sq, b_sq = energies(table, pairs, columns)
    all_sq = (table.norms[:, columns] ** 2).sum(axis=1)
    left, right, null, count = (
        x.sum(axis=1) if j < 0 else x[:, j] for x in (sums.left, sums.right, sums.null, sums.count)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        norm = np.sqrt(a_sq * b_sq)
        cosine, half = inner.value[:, j] / norm, inner.half[:, j] / norm
        total = all_sq[pairs[:, 0]] + all_sq[pairs[:, 1]]
        overlaps = {"overlap_left": left / count, "overlap_right": right / count, "overlap_null": null / count}
        return {
            "cosine": np.clip(cosine, -1, 1),
            "cosine_low": np.clip(cosine - half, -1, 1),
            "cosine_high": np.clip(cosine + half, -1, 1),
            "cosine_null": cosine_null(table, pairs, columns) / norm,
            **overlaps,
            "overlap": (left + right) / 2 / count,
            **disagree.over(columns),
            "energy_ratio": 1 + 2 * inner.value[:, j] / total,
        }


def cosine_null(table: UpdateTable, pairs: NDArray[np.int64], columns: NDArray[np.bool_]) -> Vector:
    """The standard deviation of ⟨ΔW, ΔW'⟩ of independent updates of these norms: their directions point anywhere."""
    squares = table.norms[:, columns] ** 2 / np.sqrt(table.sizes[columns])
    return np.asarray(np.sqrt(np.einsum("pk,pk->p", squares[pairs[:, 0]], squares[pairs[:, 1]])))


def _shared(table: UpdateTable, pairs: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
    """How much of each pair is compared: matrices, and the share of each one's energy that lies in them."""
    everything = np.ones(len(table.columns), dtype=np.bool_)
    a_sq, b_sq = energies(table, pairs, everything)
    all_sq = (table.norms**2).sum(axis=1)
    has = table.has.astype(np.float64)
    count = np.einsum("pk,pk->p", has[pairs[:, 0]], has[pairs[:, 1]]).astype(np.int64)
    return {"matrices": count, "shared_a": a_sq / all_sq[pairs[:, 0]], "shared_b": b_sq / all_sq[pairs[:, 1]]}


@dataclass(frozen=True)
class Disagreement:
    """Of each pair and matrix, how many sampled entries are 0 in neither, and how many of them differ, (P, K)."""

    both: NDArray[np.float32]
    differ: NDArray[np.float32]
    weights: Vector

    def over(self, columns: NDArray[np.bool_]) -> dict[str, Vector]:
        """The share over some matrices, weighted by their entries, with its 95 % interval."""
        w = self.weights[columns]
        both, differ = self.both[:, columns].astype(np.float64), self.differ[:, columns].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            total = both @ w
            p = differ @ w / total
            spread = both @ w**2 * p * (1 - p)
            half = Z * np.sqrt(spread) / total
        name = "sign_disagreement"
        return {name: p, f"{name}_low": np.clip(p - half, 0, 1), f"{name}_high": np.clip(p + half, 0, 1)}


def sign_disagreement(table: UpdateTable, pairs: NDArray[np.int64], tensors: Tensors) -> Disagreement:
    """Compare the signs of the sampled entries of each pair, matrix by matrix."""
    shape = (len(pairs), len(table.columns))
    both, differ = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    kept: dict[int, NDArray[np.int8]] = {}

    def signs(i: int) -> NDArray[np.int8]:
        if i not in kept:
            while len(kept) >= 256:
                kept.pop(next(iter(kept)))
            own = tensors(i, "signs").astype(np.int8)
            wide = np.zeros((len(table.columns), own.shape[1]), dtype=np.int8)
            at = table.has[i]
            wide[at] = own[table.index[i][at]]
            kept[i] = wide
        return kept[i]

    samples = 1
    for p, (a, b) in enumerate(pairs.tolist()):
        product = signs(a) * signs(b)
        samples = product.shape[1]
        both[p], differ[p] = np.count_nonzero(product, axis=1), np.count_nonzero(product < 0, axis=1)
    return Disagreement(both, differ, table.sizes / samples / max(table.sizes.sum(), 1))
