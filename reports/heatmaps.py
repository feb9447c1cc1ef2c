"""The layer × module heatmap: one cell per matrix, in the order of the checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deltaw.reports import style
from deltaw.reports.layers import Grid, Layers
from deltaw.reports.text import number, percent
from deltaw.results.columns import is_hidden_by_noise, is_share

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = 110  # rows with a name, at most: more cannot be read; every cell names its matrix
ROW, MARGIN = 0.2, 0.62  # inches: one row of cells; axis, ticks and labels


@dataclass(frozen=True)
class Heatmap:
    """What a heatmap draws, and how its cells find their matrices.

    Attributes:
        grid: Values and members of the cells; rows of another stack are separated by an empty row.
        hidden: (rows, columns), True where the metric may not be read because rounding hides it.
    """

    metric: str
    grid: Grid
    hidden: NDArray[np.bool_]


def prepare(layers: Layers, metric: str, vectors: bool = False) -> Heatmap | None:
    """The cells of a metric, or None where no matrix has a value."""
    frame: pd.DataFrame = layers.vectors if vectors else layers.matrices
    if metric not in frame or not len(frame):
        return None
    values = frame[metric].astype(float).where(frame["changed"])
    unclear = ~frame["clear"] & frame["changed"]
    if is_hidden_by_noise(metric):
        values = values.where(~unclear)
    grid = _separated(layers.grid(frame, values))
    hidden = np.zeros(grid.values.shape, dtype=bool)
    if is_hidden_by_noise(metric):
        for cell, members in grid.members.items():
            hidden[cell] = bool(unclear.reindex(members).all())
    if np.isnan(grid.values).all() and not hidden.any():
        return None
    return Heatmap(metric, grid, hidden)


def draw(heatmap: Heatmap, columns: int = 2) -> Axes:
    """The heatmap as a seaborn figure of one or two columns' width."""
    import seaborn as sns

    grid = heatmap.grid
    rows, cols = grid.values.shape
    height = min(max(rows * ROW + MARGIN, 1.2), 9.2)
    wide = style.COLUMN[columns] * 0.72 / max(cols, 1)
    norm = _norm(heatmap.metric, grid.values)
    with style.settings(**{"axes.grid": False}):
        fig, axes = style.figure(height, columns)
        ax: Axes = axes[0, 0]
        sns.heatmap(
            np.where(np.isnan(grid.values), norm.vmin, grid.values),
            mask=np.isnan(grid.values),
            ax=ax,
            cmap=style.SEQUENTIAL,
            norm=norm,
            vmin=norm.vmin,
            vmax=norm.vmax,
            annot=_annotations(heatmap) if wide > 0.36 and rows * cols <= 400 else None,
            fmt="",
            annot_kws={"fontsize": 6},
            linewidths=0.6 if wide > 0.08 else 0.0,
            linecolor="white",
            xticklabels=False,
            yticklabels=False,
            cbar_kws={
                **{"shrink": min(1.0, 1.5 / height), "aspect": 14, "pad": 0.015},
                "label": metric_label(heatmap.metric),
            },
        )
        ax.collections[0].set_gid("cells")
        _ticks(ax, grid, wide)
        _legend(fig, _mark_missing(ax, heatmap))
        for bar in fig.axes[1:]:
            bar.tick_params(which="both", length=2, width=0.4)
            style.ticks(bar.yaxis, share=is_share(heatmap.metric))
    return ax


def _mark_missing(ax: Axes, heatmap: Heatmap) -> list[Any]:
    """Grey where nothing changed, hatched where rounding hides the number; returns what the legend needs."""
    from matplotlib.patches import Patch

    still: dict[str, Any] = {"facecolor": style.PALE, "linewidth": 0}
    hidden: dict[str, Any] = {"facecolor": style.PALE, "edgecolor": style.MUTED, "hatch": "////", "linewidth": 0}
    unchanged = _absent(heatmap) & ~heatmap.hidden
    _mark(ax, unchanged, gid="still", **still)
    _mark(ax, heatmap.hidden, gid="hidden", **hidden)
    out = [Patch(label="unchanged", **still)] if unchanged.any() else []
    return [*out, Patch(label="rounding hides it", **hidden)] if heatmap.hidden.any() else out


def _legend(fig: Figure, handles: list[Any]) -> None:
    if handles:
        look = {"borderaxespad": 0.1, "handlelength": 1.2, "handleheight": 1.0}
        fig.legend(handles=handles, loc="lower right", ncols=2, **look)


def metric_label(name: str) -> str:
    """A column's name as words."""
    known = {"rank_90_ratio": "rank_90 / null", "relative_change": "relative change"}
    return known.get(name, name.replace("_", " ") if not name.startswith("rank_") else name)


def shown(metric: str, value: Any, digits: int = 3) -> str:
    """A value of a metric as text."""
    return percent(value, digits) if is_share(metric) else number(value, digits)


def _separated(grid: Grid) -> Grid:
    """The grid with an empty row between two stacks."""
    keep: list[int] = []
    for i, group in enumerate(grid.groups):
        if i and group != grid.groups[i - 1]:
            keep.append(-1)
        keep.append(i)
    at = {old: new for new, old in enumerate(keep) if old >= 0}
    values = np.vstack([grid.values[i] if i >= 0 else np.full(len(grid.columns), np.nan) for i in keep])
    return Grid(
        [grid.groups[i] if i >= 0 else "" for i in keep],
        [grid.labels[i] if i >= 0 else "" for i in keep],
        grid.columns,
        values,
        {(at[r], c): m for (r, c), m in grid.members.items()},
    )


def _norm(metric: str, values: NDArray[np.float64]) -> Any:
    """A linear scale from 0, or a logarithmic one where sizes span more than a factor of 20."""
    from matplotlib.colors import LogNorm, Normalize

    known = values[np.isfinite(values)]
    if not len(known):
        return Normalize(0, 1)
    low, high = float(known.min()), float(known.max())
    if not is_hidden_by_noise(metric) and low > 0 and high / low > 20:
        return LogNorm(low, high)
    if low < 0:
        return Normalize(low, max(high, low + 1e-12))
    return Normalize(0, high or 1.0)


def _annotations(heatmap: Heatmap) -> NDArray[np.str_]:
    texts = [[_note(heatmap.metric, v) for v in row] for row in heatmap.grid.values]
    return np.array(texts, dtype=str)


def _note(metric: str, value: float) -> str:
    if math.isnan(value):
        return ""
    if is_share(metric):
        return number(100 * value, 2) + " %"
    return number(value, 2 if abs(value) < 10 else 3)


def _absent(heatmap: Heatmap) -> NDArray[np.bool_]:
    absent = np.zeros(heatmap.grid.values.shape, dtype=bool)
    for cell in heatmap.grid.members:
        absent[cell] = np.isnan(heatmap.grid.values[cell])
    return absent


def _mark(ax: Axes, where: NDArray[np.bool_], gid: str, **look: Any) -> None:
    """Cells without a value: unchanged, or hidden by rounding."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    cells = [Rectangle((c + 0.04, r + 0.08), 0.92, 0.84) for r, c in np.argwhere(where)]
    if cells:
        ax.add_collection(PatchCollection(cells, gid=gid, **look), autolim=False)


def _ticks(ax: Axes, grid: Grid, wide: float) -> None:
    names = [style.label(t) for t in grid.labels]
    at = sorted({row for row, _ in grid.members})  # the others stand between two stacks
    at = at[:: math.ceil(len(at) / LABELS)]
    ax.set_yticks([i + 0.5 for i in at], [names[i] for i in at], rotation=0, fontsize=6.5 if len(at) <= 44 else 4)
    step = max(1, math.ceil(0.2 / max(wide, 1e-3)))
    numbers = [(i, c) for i, c in enumerate(grid.columns) if c]
    kept = numbers[::step]
    ax.set_xticks([i + 0.5 for i, _ in kept], [c for _, c in kept], rotation=0)
    ax.tick_params(length=0, pad=2)
    ax.set_xlabel("layer" if numbers else "")
    if grid.columns and not grid.columns[0] and len(grid.columns) > 1:
        ax.axvline(1, color="white", linewidth=4)
    stacks = list(dict.fromkeys(g for g in grid.groups if g))
    if len(stacks) > 2:
        for stack in stacks:
            rows = [i for i, g in enumerate(grid.groups) if g == stack]
            ax.annotate(
                style.label(stack, 24),
                (1.0, rows[0] - 0.1),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=6,
                color=style.MUTED,
            )
