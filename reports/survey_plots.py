"""The figures of a survey, as matplotlib axes: `plot.map()`, `.histogram("rank")`, `.histograms()`, `.similarity()`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deltaw.errors import OptionError, near
from deltaw.reports import style
from deltaw.reports.text import number, percent

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from deltaw.surveys import Survey

# The columns that have a histogram, what their axis is called, and whether it is logarithmic.
DRAWN: dict[str, tuple[str, bool]] = {
    "relative_change": ("relative change", True),
    "fro_norm": ("‖ΔW‖F", True),
    "effective_rank": ("effective rank", False),
    "energy_at_1": ("energy at rank 1", False),
    "factor_balance": ("factor balance", True),
    "nearest_cosine": ("cosine with the nearest", False),
    "rank": ("rank", False),
    "matrices": ("matrices", False),
}
COLOURS = 8  # clusters that have a colour of their own
MOST_POINTS = 600  # of a map whose points are vectors; beyond, they are an image
BINS = 24
SPAN = 5  # from which factor between the ends a histogram is logarithmic
NAMED = 40  # adapters whose names stand beside the matrix of cosines
LINE, LETTER, BAR = 0.115, 0.055, 0.85  # inches: a row with a name, one of its letters, the bar of colours


class SurveyPlots:
    """Draws a survey. Every method takes `columns`, the width in columns of a paper, and returns its axes."""

    def __init__(self, survey: Survey, mark: str = "") -> None:
        self._frame = survey.adapters()
        self._pairs = survey.pairs()
        self._shares = survey.about.axes
        self._mark = mark

    def map(self, axes: tuple[int, int] = (1, 2), columns: int = 2) -> Axes:
        """Adapters by classical scaling of their cosines; the largest clusters have colours, the marked one a ring.

        Args:
            axes: Which two of the four axes.
            columns: The width.

        Raises:
            OptionError: Fewer than three adapters have a place, or there is no such axis.
        """
        if not all(1 <= a <= 4 for a in axes):
            raise OptionError(f"axes are {axes}; expected two of 1 to 4")
        x, y = (f"map_{a}" for a in axes)
        frame = self._frame.dropna(subset=[x, y])
        if len(frame) < 3:
            raise OptionError("a map needs three adapters that can be compared")
        with style.settings():
            _, grid = style.figure(3.6, columns)
            ax: Axes = grid[0, 0]
            sizes = frame["cluster"].value_counts()
            for number_, part in _by_cluster(frame, sizes):
                colour = style.GROUPS[number_ % len(style.GROUPS)] if number_ else style.LINE
                label = (
                    f"cluster {number_}" if number_ else "others" if (sizes > 1).sum() > COLOURS else "in no cluster"
                )
                many = len(frame) > MOST_POINTS
                ax.scatter(
                    part[x],
                    part[y],
                    s=10,
                    color=colour,
                    alpha=0.75,
                    lw=0,
                    label=f"{label} ({len(part)})",
                    rasterized=many,
                )
            mine = frame[frame["name"] == self._mark]
            if len(mine):
                ax.scatter(mine[x], mine[y], s=70, facecolors="none", edgecolors=style.INK, lw=1.2, label=self._mark)
            ax.set(xlabel=self._axis(axes[0]), ylabel=self._axis(axes[1]))
            ax.set_aspect("equal", adjustable="datalim")
            for axis in (ax.xaxis, ax.yaxis):
                style.ticks(axis)
            ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        return ax

    def histogram(self, column: str, columns: int = 1) -> Axes:
        """How many adapters have which value of a column; the marked one as a line.

        Args:
            column: Of the table of adapters.
            columns: The width.

        Raises:
            OptionError: There is no such column, or nothing in it.
        """
        if column not in DRAWN:
            raise OptionError(f"no histogram of {column!r}; there are {', '.join(DRAWN)}.{near(column, DRAWN)}")
        with style.settings():
            _, grid = style.figure(2.2, columns)
            ax: Axes = grid[0, 0]
            self._histogram(ax, column)
        return ax

    def histograms(self, columns: int = 2) -> NDArray[np.object_]:
        """Every column that has values, side by side.

        Raises:
            OptionError: None has.
        """
        known = [c for c in DRAWN if len(self._values(c)) > 1]
        if "relative_change" in known:
            known.remove("fro_norm")
        if not known:
            raise OptionError("two adapters with numbers are needed")
        across = min(3, len(known))
        down = -(-len(known) // across)
        with style.settings():
            _, grid = style.figure(1.7 * down, columns, down, across)
            cells: NDArray[np.object_] = grid.reshape(-1)
            for ax, column in zip(cells, known, strict=False):
                self._histogram(ax, column)
            for ax in cells[len(known) :]:
                ax.set_visible(False)
        return cells[: len(known)]

    def similarity(self, columns: int = 2) -> Axes:
        """The cosine of every pair, ordered by cluster.

        Raises:
            OptionError: Not all pairs were compared, or there are fewer than two adapters.
        """
        frame = self._frame.dropna(subset=["cluster"]).sort_values(["cluster", "name"])
        n = len(frame)
        if n < 2 or len(self._pairs) != n * (n - 1) // 2:
            raise OptionError("every pair has to be compared: 2 to 200 adapters")
        place = {name: i for i, name in enumerate(frame["name"])}
        C = np.eye(n)
        a, b = (self._pairs[side].map(place).to_numpy() for side in ("a", "b"))
        C[a, b] = C[b, a] = self._pairs["cosine"].to_numpy(dtype=np.float64)
        few = n <= NAMED
        names = [style.label(str(name), 24) for name in frame["name"]] if few else []
        side = max(1.6, LINE * n) if few else 3.2  # inches
        room = max((LETTER * len(name) for name in names), default=0.2) + BAR
        with style.settings():
            figure, grid = style.figure(side + 0.4, columns)
            figure.set_figwidth(min(side + room, style.COLUMN[columns]))
            figure.set_layout_engine("compressed", w_pad=0.08)  # squares; letters of a page are wider than matplotlib's
            ax: Axes = grid[0, 0]
            drawn = ax.imshow(C, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
            bar = figure.colorbar(drawn, ax=ax, shrink=0.6, label="cosine")
            bar.outline.set_visible(False)
            ax.grid(visible=False)
            ax.set_xticks([])
            ax.set_yticks(range(n) if few else [], names)
            ax.set(
                xlabel="the same, from left to right" if few else "the same",
                ylabel="" if few else f"{n} adapters, by cluster",
            )
            edges = np.flatnonzero(np.diff(frame["cluster"].to_numpy())) + 0.5
            for edge in edges if len(edges) < 40 else []:
                ax.axhline(edge, color=style.INK, lw=0.3)
                ax.axvline(edge, color=style.INK, lw=0.3)
        return ax

    def _axis(self, axis: int) -> str:
        """An axis of the map, with the share of the squared distances that it holds."""
        known = self._shares[axis - 1 : axis]
        return f"axis {axis}" + "".join(f" ({percent(share, 2)})" for share in known)

    def _values(self, column: str) -> NDArray[np.float64]:
        values = self._frame[column].to_numpy(dtype=np.float64)
        known = np.isfinite(values) & ((values > 0) | (not DRAWN[column][1]))
        return np.asarray(values[known], dtype=np.float64)

    def _histogram(self, ax: Axes, column: str) -> None:
        from matplotlib.ticker import MaxNLocator

        label, log = DRAWN[column]
        values = self._values(column)
        if not len(values):
            raise OptionError(f"no adapter has a {label}")
        low, high = float(values.min()), float(values.max())
        if high - low <= 1e-9 * abs(high):
            low, high = (low / 1.1, high * 1.1) if log else (low - 0.5, high + 0.5)
        log = log and high > SPAN * low
        whole = column in {"rank", "matrices"} and high - low < BINS
        edges = np.geomspace(low, high, BINS + 1) if log else np.linspace(low, high, BINS + 1)
        if whole:
            edges = np.arange(np.floor(low), np.ceil(high) + 2) - 0.5
        ax.hist(values, bins=list(edges), color=style.GROUPS[1], lw=0)
        if log:
            style.log_scale(ax.xaxis, share=column == "relative_change")
        else:
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=whole))  # three of them share a line
            style.ticks(ax.xaxis, share=column in {"energy_at_1", "relative_change"})
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        style.ticks(ax.yaxis)
        ax.set(xlabel=label)
        mine = self._frame.loc[self._frame["name"] == self._mark, column]
        if len(mine) and np.isfinite(float(mine.iloc[0])):
            at = float(mine.iloc[0])
            ax.axvline(at, color=style.GROUPS[2], lw=1.4)
            below = float((values < at).mean())
            ax.set_title(f"{style.label(self._mark, 18)}: above {number(100 * below, 2)} %", fontsize=7)


def _by_cluster(frame: pd.DataFrame, sizes: pd.Series[int]) -> list[tuple[int, pd.DataFrame]]:
    """The largest clusters by number, and all others as 0, which are drawn first."""
    shown = [int(c) for c in sorted(sizes[sizes > 1].index)[:COLOURS]]
    rest = frame[~frame["cluster"].isin(shown)]
    return [(0, rest)] * bool(len(rest)) + [(c, frame[frame["cluster"] == c]) for c in shown]
