"""Who belongs together: average linkage of 1 − cosine, cut where chance or a fixed cosine ends; and a map."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deltaw.types import Matrix as Array

if TYPE_CHECKING:
    from numpy.typing import NDArray

CUT = 0.3  # the cosine at which clusters are cut, unless chance reaches further
NULL_QUANTILE = 2.3263478740408408  # 99 % of a normal distribution
AXES = 4  # of the map


class Cut(NamedTuple):
    """Where clusters were cut.

    Attributes:
        cosine: The cosine.
        null: The 99 % quantile of cosines of independent updates.
        rule: `fixed`, or `null` where chance reaches beyond the fixed one.
    """

    cosine: float
    null: float
    rule: str


def cut_at(null_deviations: NDArray[np.floating]) -> Cut:
    """The cut, from the standard deviations of the pairs' cosines under independence."""
    known = null_deviations[np.isfinite(null_deviations)].astype(np.float64)
    null = NULL_QUANTILE * float(np.sqrt(np.mean(known**2))) if known.size else 0.0
    return Cut(max(CUT, null), null, "fixed" if null <= CUT else "null")


def clusters(cosine: NDArray[np.floating], cut: Cut) -> NDArray[np.int64]:
    """The cluster of each adapter, numbered from 1 by size; one that is like no other has its own.

    Args:
        cosine: (N, N), symmetric; NaN where two share nothing, which counts as 0.
        cut: Where the tree is cut.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if len(cosine) < 2:
        return np.ones(len(cosine), dtype=np.int64)
    distance = 1 - np.nan_to_num(np.asarray(cosine, dtype=np.float64))
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(np.maximum((distance + distance.T) / 2, 0), checks=False), method="average")
    found = fcluster(tree, t=1 - cut.cosine, criterion="distance")
    labels, first, sizes = np.unique(found, return_index=True, return_counts=True)
    order = np.lexsort((first, -sizes))
    number = np.empty(int(labels.max()) + 1, dtype=np.int64)
    number[labels[order]] = np.arange(1, len(labels) + 1)
    return number[found]


def coordinates(cosine: NDArray[np.floating]) -> Array:
    """Classical scaling of the Gram matrix of cosines: (N, AXES), the axes by the spread that they show.

    Source: Torgerson 1952; Gower 1966. With unit vectors for adapters the distance on all axes is √(2 − 2·cosine).
    """
    from scipy.linalg import eigh
    from scipy.sparse.linalg import eigsh

    N = len(cosine)
    out = np.zeros((N, AXES))
    if N < 2:
        return out
    G = np.nan_to_num(np.asarray(cosine, dtype=np.float64))
    G = (G + G.T) / 2
    np.fill_diagonal(G, 1)
    G -= G.mean(axis=0)
    G -= G.mean(axis=1, keepdims=True)
    count = min(AXES, N - 1)
    if N > 500:
        values, vectors = eigsh(G, k=count, which="LA", v0=np.linspace(1, 2, N))
    else:
        values, vectors = eigh(G, subset_by_index=(N - count, N - 1))
    order = np.argsort(-values)
    vectors, values = vectors[:, order], np.maximum(values[order], 0)
    vectors *= np.where(vectors[np.abs(vectors).argmax(axis=0), range(count)] < 0, -1, 1)  # the same in every run
    out[:, :count] = vectors * np.sqrt(values)
    return out


def axis_shares(cosine: NDArray[np.floating], at: Array) -> tuple[float, ...]:
    """The share of all squared distances 2 − 2·cosine that each axis of the map holds: its eigenvalue over the trace.

    Args:
        cosine: (N, N), as for `coordinates`.
        at: (N, AXES), what `coordinates` made of it.

    Returns:
        One number for each axis; empty where nothing lies apart.
    """
    N = len(cosine)
    apart = np.nan_to_num(np.asarray(cosine, dtype=np.float64))
    np.fill_diagonal(apart, 1)
    total = N - float(apart.sum()) / max(N, 1)  # the trace of the centred matrix
    if not total > 1e-9 * N:
        return ()
    return tuple(float(v) for v in np.minimum((at**2).sum(axis=0) / total, 1))
