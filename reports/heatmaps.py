"""The layer × module heatmap: one cell per matrix, in the order of the network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from deltaw.reports import ramp, style
from deltaw.reports.layers import LayerGrid, Layers
from deltaw.reports.text import number, percent
from deltaw.results.columns import is_hidden_by_noise, is_share

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = 110  # rows with a name, at most: more cannot be read; every cell names its matrix
CELLS = 6000  # of the experts' map, at most
ROW, MARGIN = 0.2, 0.62  # inches: one row of cells; axis, ticks and labels
WIDEST, READABLE = 1.15, 0.4  # inches: a cell at most, and the cell of what is outside of layers at least
GAP = 0.4  # of a row: between what comes before the layers, each stack, and what comes after
FIXED = {"rank_90_ratio": 1.0}  # metrics whose scale ends where noise is, not at the largest value
SPANNED = {"selectivity"}  # … whose scale begins at the smallest value: all of them are near 1
WORDS = {
    "rank_90_ratio": "rank_90 / null",
    "rank_90_on_data": "rank_90 on data",
    "rank_90_on_source": "rank_90 on source",
}


@dataclass(frozen=True)
class Heatmap:
    """What a heatmap draws, and how its cells find their matrices.

    Attributes:
        metric: The column.
        grid: Values and members of the cells.
        hidden: (rows, columns), True where the metric may not be read because rounding hides it.
        valueless: (rows, columns), True where something changed that the metric has no value of: relative to a base of
            zeros.
        rows_are: What the rows are, where they are not modules.
        columns_are: What the columns are.
    """

    metric: str
    grid: LayerGrid
    hidden: NDArray[np.bool_]
    valueless: NDArray[np.bool_]
    rows_are: str = ""
    columns_are: str = "layer"

    def state(self, row: int, column: int) -> str:
        """Why a cell has no value."""
        if self.hidden[row, column]:
            return "hidden by rounding"
        return "changed from zero, so that there is no ratio" if self.valueless[row, column] else "unchanged"


def prepare(layers: Layers, metric: str, vectors: bool = False) -> Heatmap | None:
    """The cells of a metric, or None where no matrix has a value."""
    frame: pd.DataFrame = layers.vectors if vectors else layers.matrices
    if metric not in frame or not len(frame):
        return None
    values = layers.said(metric).reindex(frame.index).where(frame["changed"])
    grid = layers.grid(frame, values)
    hidden = np.zeros(grid.values.shape, dtype=bool)
    if is_hidden_by_noise(metric):
        unknown = frame[metric].notna() & frame["changed"] & values.isna()
        concealed = dict(zip(frame.index, unknown, strict=True))
        for cell, members in grid.members.items():
            hidden[cell] = all(concealed[i] for i in members)
    if np.isnan(grid.values).all() and not hidden.any():
        return None
    valueless = np.zeros_like(hidden)
    from_zero = frame["changed"] & (frame["base_fro_norm"] == 0)
    for cell, members in grid.members.items():
        valueless[cell] = np.isnan(grid.values[cell]) and not hidden[cell] and from_zero.loc[members].any()
    return Heatmap(metric, grid, hidden, valueless)


def prepare_experts(layers: Layers) -> Heatmap | None:
    """How far each expert moved, by expert and layer, all its matrices as one vector; None where there are none."""
    rows = layers.matrices.assign(expert=layers.experts)
    rows = rows[rows["expert"].notna() & rows["layer"].notna() & rows["base_fro_norm"].notna()]
    if not len(rows) or rows["expert"].nunique() < 2:
        return None
    rows = rows.assign(change=rows["fro_norm"] ** 2, base=rows["base_fro_norm"] ** 2)
    numbers, experts = (sorted(rows[name].unique()) for name in ("layer", "expert"))
    step = style.step(len(numbers) * len(experts) / CELLS)  # several layers share a row where the cells are too many
    rows = rows.assign(layer=rows["layer"].map({n: numbers[i - i % step] for i, n in enumerate(numbers)}))
    numbers = numbers[::step]
    pooled = rows.groupby(["layer", "expert"])[["change", "base"]].sum()
    row_of, column_of = ({v: i for i, v in enumerate(found)} for found in (numbers, experts))
    values = np.full((len(numbers), len(experts)), np.nan)
    members: dict[tuple[int, int], list[int]] = {}
    for at, layer, number_ in zip(rows.index, rows["layer"], rows["expert"], strict=True):
        members.setdefault((row_of[layer], column_of[number_]), []).append(int(at))
    for layer, number_, change, base in pooled.reset_index().itertuples(index=False):
        if change > 0 and base > 0:
            values[row_of[layer], column_of[number_]] = math.sqrt(change / base)
    labels, columns = ([f"{n:.0f}" for n in found] for found in (numbers, experts))
    grid = LayerGrid([""] * len(labels), labels, columns, values, members)
    none = np.zeros(values.shape, dtype=bool)
    return Heatmap("relative_change", grid, none, none, rows_are="layer", columns_are="expert")


def draw(heatmap: Heatmap, columns: int = 2) -> Axes:
    """The heatmap as a figure of one or two columns' width."""
    grid = heatmap.grid
    rows, cols = grid.values.shape
    room = style.COLUMN[columns] * 0.74
    x, y = _edges(grid, room)
    height = min(max(y[-1] * ROW + MARGIN, 1.2), 9.2)
    norm = _norm(heatmap.metric, grid.values)
    right = max(float(x[-1]), room / WIDEST)  # few cells do not become huge: the rest of the width stays empty
    wide = room / right  # inches of a cell inside the layers
    with style.settings(**{"axes.grid": False}):
        fig, axes = style.figure(height, columns)
        ax: Axes = axes[0, 0]
        mesh = ax.pcolormesh(
            x,
            y,
            np.ma.masked_invalid(_spread(grid)),
            cmap=ramp.colormap(),
            norm=norm,
            edgecolors="white",
            linewidth=0.6 if wide > 0.08 else 0.0,
        )
        mesh.set_gid("cells")
        ax.set(xlim=(0, right), ylim=(y[-1], 0))
        ax.spines[:].set_visible(False)
        centres = _centres(grid, x, y)
        if wide > 0.36 and rows * cols <= 400:
            _annotate(ax, heatmap, norm, *centres)
        _ticks(ax, heatmap, wide, *centres)
        _legend(fig, _mark_missing(ax, heatmap, x, y))
        bar = fig.colorbar(
            mesh, ax=ax, shrink=min(1.0, 1.5 / height), aspect=14, pad=0.015, label=metric_label(heatmap.metric)
        )
        bar.outline.set_visible(False)
        if bar.solids is not None:
            bar.solids.set_edgecolor("face")  # no seams between the steps of the ramp
        bar.ax.tick_params(which="both", length=2, width=0.4)
        style.ticks(bar.ax.yaxis, share=is_share(heatmap.metric))
    return ax


def _edges(grid: LayerGrid, room: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The edges of the columns and of the rows, in cells; a gap between two groups of rows is a thin row."""
    cols = len(grid.columns)
    first = 1.0
    if cols > 1 and not grid.columns[0]:  # outside of layers: at least a readable cell
        first = max(1.0, READABLE * (cols - 1) / max(room - READABLE, READABLE))
    x = np.concatenate([[0.0], first + np.arange(cols)]) if cols else np.zeros(1)
    y = [0.0]
    for i, group in enumerate(grid.groups):
        if i and group != grid.groups[i - 1]:
            y.append(y[-1] + GAP)
        y.append(y[-1] + 1)
    return x, np.array(y)


def _rows_of(grid: LayerGrid) -> list[int]:
    """The row of the drawn mesh for each row of the grid: gaps are rows of it, too."""
    out, at = [], -1
    for i, group in enumerate(grid.groups):
        at += 2 if i and group != grid.groups[i - 1] else 1
        out.append(at)
    return out


def _spread(grid: LayerGrid) -> NDArray[np.float64]:
    """The values with an empty row for each gap."""
    at = _rows_of(grid)
    drawn = np.full((at[-1] + 1, len(grid.columns)), np.nan)
    drawn[at] = grid.values
    return drawn


def _centres(
    grid: LayerGrid, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    middle_x, middle_y = (x[1:] + x[:-1]) / 2, (y[1:] + y[:-1]) / 2
    return middle_x[: len(grid.columns)], middle_y[_rows_of(grid)]


def drawn_cells(grid: LayerGrid) -> dict[int, tuple[int, int]]:
    """The cells by their number in the picture, row by row, gaps included."""
    width = len(grid.columns)
    return {at * width + c: (r, c) for r, at in enumerate(_rows_of(grid)) for c in range(width)}


class EmptyCellStyle(TypedDict, total=False):
    """How cells without a number are drawn: keywords of matplotlib's patches."""

    facecolor: str
    edgecolor: str
    hatch: str
    linewidth: float


def _mark_missing(ax: Axes, heatmap: Heatmap, x: NDArray[np.float64], y: NDArray[np.float64]) -> list[Any]:
    """Grey where nothing changed, marked where there is no number; returns what the legend needs."""
    from matplotlib.patches import Patch

    still: EmptyCellStyle = {"facecolor": style.PALE, "linewidth": 0}
    hidden: EmptyCellStyle = {"facecolor": style.PALE, "edgecolor": style.MUTED, "hatch": "////", "linewidth": 0}
    valueless: EmptyCellStyle = {"facecolor": "white", "edgecolor": style.INK, "hatch": "xxxx", "linewidth": 0}
    unchanged = _absent(heatmap) & ~heatmap.hidden & ~heatmap.valueless
    out = []
    for where, gid, label, look in (
        (unchanged, "still", "unchanged", still),
        (heatmap.hidden, "hidden", "rounding hides it", hidden),
        (heatmap.valueless, "valueless", "changed from zero", valueless),
    ):
        _mark(ax, where, x, y, heatmap.grid, gid=gid, **look)
        if where.any():
            out.append(Patch(label=label, **look))
    return out


def _legend(fig: Figure, handles: list[Any]) -> None:
    if handles:
        look = {"borderaxespad": 0.1, "handlelength": 1.2, "handleheight": 1.0}
        fig.legend(handles=handles, loc="lower right", ncols=2, **look)


def metric_label(name: str) -> str:
    """A column's name as words."""
    return WORDS.get(name, name if name.startswith("rank_") else name.replace("_", " "))


def shown(metric: str, value: Any, digits: int = 3) -> str:
    """A value of a metric as text."""
    return percent(value, digits) if is_share(metric) else number(value, digits)


def _norm(metric: str, values: NDArray[np.float64]) -> Any:
    """A linear scale from 0, or a logarithmic one where sizes span more than a factor of 20."""
    from matplotlib.colors import LogNorm, Normalize

    known = values[np.isfinite(values)]
    if not len(known):
        return Normalize(0, 1)
    low, high = float(known.min()), float(known.max())
    if metric in FIXED:
        return Normalize(0, max(FIXED[metric], high))
    if not is_hidden_by_noise(metric) and low > 0 and high / low > 20:
        return LogNorm(low, high)
    if low < 0 or metric in SPANNED:
        return Normalize(low, max(high, low + 1e-12))
    return Normalize(0, high or 1.0)


def _annotate(ax: Axes, heatmap: Heatmap, norm: Any, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    """The numbers on the cells, with as many decimals each."""
    values = heatmap.grid.values
    write = _writer(heatmap.metric, values[np.isfinite(values)])
    for (row, column), value in np.ndenumerate(values):
        if math.isfinite(value):
            colour = ramp.text_colour(ramp.level(float(norm(value))))
            ax.text(float(x[column]), float(y[row]), write(value), ha="center", va="center", fontsize=6, color=colour)


def _writer(metric: str, known: NDArray[np.float64]) -> Any:
    """How the numbers of one figure are written: with fixed decimals, unless they span a factor of 100."""
    scale, unit = (100.0, " %") if is_share(metric) else (1.0, "")
    sizes = np.abs(known[known != 0])
    if not sizes.size or sizes.max() > 100 * sizes.min():
        return lambda v: number(scale * v, 2) + unit
    high, low = float(sizes.max()), float(sizes.min())
    whole = np.all(known == np.round(known)) and not unit
    if metric in SPANNED:
        return lambda v: f"{v:.2f}"
    decimals = 0 if whole else max(0, 1 - math.floor(math.log10(scale * high)), -math.floor(math.log10(scale * low)))
    return lambda v: f"{scale * v:,.{min(decimals, 6)}f}{unit}".replace("-", "\N{MINUS SIGN}")


def _absent(heatmap: Heatmap) -> NDArray[np.bool_]:
    absent = np.zeros(heatmap.grid.values.shape, dtype=bool)
    for cell in heatmap.grid.members:
        absent[cell] = np.isnan(heatmap.grid.values[cell])
    return absent


def _mark(
    ax: Axes,
    where: NDArray[np.bool_],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    grid: LayerGrid,
    gid: str,
    **look: Any,
) -> None:
    """Cells without a value: unchanged, hidden by rounding, or changed from zero."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    at = _rows_of(grid)
    cells = [
        Rectangle((x[c] + 0.04, y[at[r]] + 0.08), x[c + 1] - x[c] - 0.08, 0.84) for r, c in np.argwhere(where)
    ]  # fmt: skip
    if cells:
        ax.add_collection(PatchCollection(cells, gid=gid, **look), autolim=False)


def _ticks(ax: Axes, heatmap: Heatmap, wide: float, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    grid = heatmap.grid
    names = [style.label(t) for t in grid.labels]
    step = style.step(len(names) / (40 if heatmap.rows_are else LABELS))
    at = range(0, len(names), step)
    ax.set_yticks([y[i] for i in at], [names[i] for i in at], rotation=0, fontsize=6.5 if len(at) <= 44 else 4)
    numbers = [(i, c) for i, c in enumerate(grid.columns) if c]
    kept = numbers[:: style.step(0.2 / max(wide, 1e-3))]
    ax.set_xticks([x[i] for i, _ in kept], [c for _, c in kept], rotation=0)
    ax.tick_params(length=0, pad=2)
    ax.set_xlabel(heatmap.columns_are if numbers else "")
    ax.set_ylabel(heatmap.rows_are)
