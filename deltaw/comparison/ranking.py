"""Tests and effects by rank: Cliff's delta, Wilcoxon's signed-rank test."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def cliffs_delta(a: Array, b: Array) -> float:
    """P(a > b) − P(a < b) over all pairs: 1 if every a is above every b, 0 if neither tends to be (Cliff 1993)."""
    ordered = np.sort(b)
    below = np.searchsorted(ordered, a, side="left").sum()
    above = (len(b) - np.searchsorted(ordered, a, side="right")).sum()
    return float((below - above) / (len(a) * len(b)))


def wilcoxon(difference: Array) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; 1 where every difference is zero."""
    from scipy import stats

    d = difference[np.isfinite(difference)]
    if not d.any():
        return 1.0
    return float(stats.wilcoxon(d).pvalue)


def wilcoxon_many(differences: Array) -> Array:
    """`wilcoxon` of each row of (metrics, layers): in one call where the normal approximation serves anyway."""
    from scipy import stats

    out = np.array([1.0 if not row[np.isfinite(row)].any() else math.nan for row in differences])
    patterns: dict[bytes, list[int]] = {}
    for i in np.flatnonzero(np.isnan(out)):
        patterns.setdefault(np.isfinite(differences[i]).tobytes(), []).append(int(i))
    for rows in patterns.values():
        block = differences[rows][:, np.isfinite(differences[rows[0]])]
        # Ties and zeros take scipy from the exact distribution to another: they are not mixed with rows without.
        ordered = np.sort(np.abs(block), axis=1)
        plain = np.asarray((ordered[:, :1] > 0).all(axis=1) & (np.diff(ordered, axis=1) > 0).all(axis=1))
        plain |= block.shape[1] > 50  # scipy's limit of the exact distribution
        if plain.any():
            out[np.array(rows)[plain]] = stats.wilcoxon(block[plain], axis=1).pvalue
        for i in np.flatnonzero(~plain):
            out[rows[i]] = wilcoxon(block[i])
    return out
