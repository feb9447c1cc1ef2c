"""What the figures of a comparison draw: means over seeds, curves along tokens, medians by block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deltaw.reports.text import number
from deltaw.results.columns import IN_PANELS

if TYPE_CHECKING:
    import pandas as pd

    from deltaw.comparison.claims.verdicts import Claim

ALL = 1.02  # the end of an axis of shares, with room for a dot at 1


def reach(quantity: str, values: np.ndarray, low: np.ndarray, high: np.ndarray, *, log: bool) -> tuple[float, float]:
    """The ends of a fingerprint's panel: every value, and intervals as far as they do not hide the values."""
    known = values[np.isfinite(values)]
    if log:
        return float(known.min() / 4), float(known.max() * 4)
    widths = (high - low)[np.isfinite(high - low)]
    margin = max(float(np.ptp(known)), 0.05 * float(np.abs(known).max()), 1e-12)
    beside = max(0.6 * margin, 0.6 * float(np.median(widths)) if widths.size else 0.0)
    top = ALL if quantity == "energy_at_16" else math.inf
    return float(known.min() - beside), float(min(known.max() + beside, top))


def cut_off(prints: pd.DataFrame) -> int:
    """How many intervals of the fingerprints leave their panel."""
    out = 0
    for quantity, (_, log) in IN_PANELS.items():
        values, low, high = (prints[f"{quantity}{e}"].to_numpy(dtype=np.float64) for e in ("", "_low", "_high"))
        if np.isfinite(values).any():
            left, right = reach(quantity, values, low, high, log=log and bool(np.nanmin(values) > 0))
            out += int(((low < left) | (np.minimum(high, 1) > right if right == ALL else high > right)).sum())
    return out


def setting_columns(frame: pd.DataFrame) -> list[str]:
    """What tells settings apart: tokens and hyperparameters."""
    return ["tokens", *(str(c) for c in frame.columns if str(c).startswith("hp_"))]


def keyed(frame: pd.DataFrame) -> pd.DataFrame:
    """Runs with hyperparameters that are lists as texts: pandas cannot group by a list beside a missing one."""
    listed = [c for c in setting_columns(frame) if frame[c].map(lambda v: isinstance(v, (tuple, list))).any()]
    return frame.assign(**{c: frame[c].map(lambda v: str(v) if isinstance(v, (tuple, list)) else v) for c in listed})


def mean_curves(points: pd.DataFrame) -> list[tuple[Any, pd.DataFrame]]:
    """The points of a group joined along tokens, or along its settings where tokens do not differ; seeds averaged."""
    hyper = [c for c in setting_columns(points) if c != "tokens"]
    if points["tokens"].nunique() < 2:
        means = points.groupby(["tokens", *hyper], dropna=False)[["learning", "retention"]].mean().reset_index()
        return [("", means.sort_values("learning"))] if len(means) > 1 else []
    out = []
    for key, part in points.groupby(hyper, dropna=False) if hyper else [("", points)]:
        means = part.groupby("tokens", dropna=False)[["learning", "retention"]].mean().reset_index()
        out.append((key, means.sort_values("tokens")))
    return out


def mean_of(curves: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The geometric mean of the mean spectra of a group's seeds."""
    x = curves[0].indices
    logs = [np.interp(x, c.indices, np.log(np.where(np.isfinite(c.sigma), c.sigma, 1e-300))) for c in curves]
    y = np.exp(np.mean(logs, axis=0))
    return x, np.where(y < 1e-12, math.nan, y)


def seed_average(values: np.ndarray) -> np.ndarray:
    """(seeds, layers) → (layers,); nothing where no seed has the metric."""
    from deltaw.comparison.statistics import seed_mean

    return seed_mean(values) if values.size else np.zeros(0)


def by_block(block: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The median over the matrices of a block (experts, stacks), by block."""
    blocks = np.unique(block)
    found = [values[(block == b) & np.isfinite(values)] for b in blocks]
    return blocks, np.array([np.median(v) if v.size else math.nan for v in found])


def decided_first(claims: Sequence[Claim]) -> list[Claim]:
    """Claims with a verdict, then those with intervals, then the others."""
    order = {"agrees": 0, "disagrees": 0, "cannot tell": 1}
    return sorted(claims, key=lambda c: (order[c.verdict], c.basis != "intervals"))


def tokens_label(v: float) -> str:
    """1e6 → `1 M`."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(v) >= size:
            return f"{number(v / size, 3)} {unit}"
    return number(v, 3)
