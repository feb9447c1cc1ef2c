"""Which pairs of many adapters are looked at exactly: each one and those that may be its nearest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST = 5  # candidates of each
LISTED = 20  # neighbours of each that are kept


def candidates(cosine: NDArray[np.floating], half: NDArray[np.floating]) -> NDArray[np.int64]:
    """Pairs (P, 2), the smaller number first: each adapter with its nearest, and with those that may be nearer.

    Args:
        cosine: (N, N), estimated; NaN where two share nothing.
        half: The half-widths of its intervals.
    """
    found: set[tuple[int, int]] = set()
    for i in range(len(cosine)):
        row = np.where(np.isnan(cosine[i]), -np.inf, cosine[i]).astype(np.float64)
        row[i] = -np.inf
        reach = row + np.nan_to_num(half[i])
        best = np.argsort(-row, kind="stable")[:MOST]
        enough = row[best[0]] - float(np.nan_to_num(half[i, best[0]]))
        found.update((min(i, j), max(i, j)) for j in best.tolist() if np.isfinite(row[j]) and reach[j] >= enough)
    return np.array(sorted(found), dtype=np.int64).reshape(-1, 2)


def nearest(cosine: NDArray[np.floating], looked_at: NDArray[np.int64], count: int = LISTED) -> NDArray[np.int64]:
    """The nearest of each, (N, ≤ count): those of pairs that were looked at first, by cosine; −1 where there is none.

    An estimate that was not looked at may be above them all: of many, the largest is mostly one that errs upwards.

    Args:
        cosine: (N, N); NaN where two share nothing.
        looked_at: Pairs (P, 2) whose cosines are no estimates from afar.
        count: How many of each.
    """
    N = len(cosine)
    row = np.where(np.isnan(cosine), -np.inf, cosine).astype(np.float64)
    a, b = looked_at.T
    row[a, b], row[b, a] = row[a, b] + 4, row[b, a] + 4  # cosines differ by 2 at most
    np.fill_diagonal(row, -np.inf)
    order = np.argsort(-row, axis=1, kind="stable")[:, : min(count, max(N - 1, 0))]
    return np.where(np.isfinite(np.take_along_axis(row, order, axis=1)), order, -1)
