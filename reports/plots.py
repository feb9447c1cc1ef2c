"""The figures of one analysis, as matplotlib axes: `plot.heatmap()`, `.spectrum(name)`, `.energy()`, `.ranks()`.

Every method takes `columns`, the width in columns of a paper (1 or 2), and returns the axes that it drew: one, or an
array of several. `axes.figure` is the figure. No pyplot is involved: nothing pops up, nothing needs closing.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from deltaw.errors import OptionError, near
from deltaw.metrics.energy import RANKS
from deltaw.metrics.precision import NOISY, RESOLVED
from deltaw.reports import heatmaps, style
from deltaw.reports.curves import curve, noise_curve
from deltaw.reports.layers import Layers
from deltaw.reports.order import place
from deltaw.reports.text import short
from deltaw.results.rows import CLEAR
from deltaw.types import matrix_key, matrix_label

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from deltaw.results.analysis import Analysis

MOST = 40  # lines of a strip of dots: the largest
DOTS = 500  # of a line: as many experts cover each other anyhow
DEEPEST = 1e-4  # of σ1: the tail below is of no account, and would press the rest together
MANY = 60  # curves in one panel; beyond, an even selection is drawn


class AnalysisPlots:
    """Draws an analysis."""

    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis

    @cached_property
    def layers(self) -> Layers:
        """The prepared table."""
        return Layers(self._analysis)

    def heatmap(self, metric: str = "relative_change", vectors: bool = False, columns: int = 2) -> Axes:
        """A column by layer and module, one cell per matrix.

        Args:
            metric: Any numeric column.
            vectors: Norms and biases instead of matrices.
            columns: Width, 1 or 2.

        Raises:
            OptionError: No row has a value in that column.
        """
        if metric not in (columns_known := self.layers.frame.select_dtypes("number").columns):
            raise OptionError(f"there is no column {metric!r} of numbers.{near(metric, columns_known)}")
        prepared = heatmaps.prepare(self.layers, metric, vectors)
        if prepared is None:
            raise OptionError(
                f"no {'vector' if vectors else 'matrix'} of this analysis has a value of {metric!r} to draw"
            )
        return heatmaps.draw(prepared, columns)

    def experts(self, columns: int = 2) -> Axes:
        """The relative change of each expert, by expert and layer.

        Raises:
            OptionError: The model has no experts, or none has a base to compare with.
        """
        prepared = heatmaps.prepare_experts(self.layers)
        if prepared is None:
            raise OptionError("no matrix of this analysis belongs to one of several experts")
        return heatmaps.draw(prepared, columns)

    def spectrum(self, name: str, part: str = "", columns: int = 1) -> Axes:
        """The singular values of one matrix, with the noise edge and what noise of the same size would show.

        Raises:
            KeyError: No matrix of that name was analysed.
        """
        spectrum = self._analysis.spectrum(name, part)
        frame = self.layers.frame
        row = frame[frame["key"] == matrix_key(name, part)].iloc[0]
        drawn = curve(spectrum)
        noise = noise_curve(spectrum.rows, spectrum.cols)
        with style.settings():
            _, axes = style.figure(2.4, columns)
            ax: Axes = axes[0, 0]
            ax.plot(drawn.at, drawn.sigma, color=style.kind_colour(row["kind"]), label="ΔW", marker="o", markersize=1.6)
            ax.plot(
                noise.at,
                noise.sigma * row["fro_norm"],
                color=style.MUTED,
                linestyle="--",
                label="noise of the same norm",
            )
            if row["rounding_noise"] > 0:
                ax.plot(
                    noise.at,
                    noise.sigma * row["rounding_noise"],
                    color=style.MUTED,
                    linestyle=":",
                    label="its rounding",
                )
                ax.axhline(row["noise_edge"], color=style.KINDS["mlp"], linewidth=0.8, label="noise edge")
            ax.set(xlabel="i", ylabel="σᵢ", title=style.label(matrix_label(name, part), 44 * columns))
            _log(ax, drawn.sigma)
            ax.legend(loc="lower left")
        return ax

    def spectra(self, columns: int = 2) -> Any:
        """The singular values of all changed matrices, one panel per module kind."""
        return self._by_kind(columns, cumulative=False)

    def energy(self, columns: int = 2) -> Any:
        """The cumulative energy of all resolved matrices, one panel per module kind."""
        return self._by_kind(columns, cumulative=True)

    def kept(self, columns: int = 1) -> Axes:
        """The energy that the best rank-r update keeps, against r, by module kind."""
        from matplotlib.patches import Patch

        clear = self._readable(resolved=True)
        most = float(clear[["rows", "cols"]].min(axis=1).max())
        shown = [r for i, r in enumerate(RANKS) if not i or RANKS[i - 1] < most]  # beyond, all is kept
        with style.settings():
            _, axes = style.figure(2.5, columns)
            ax: Axes = axes[0, 0]
            for kind in self.layers.kinds:
                rows = clear[clear["kind"] == kind]
                shares = rows[[f"energy_at_{r}" for r in shown]].to_numpy(dtype=float)
                if not len(rows) or np.isnan(shares).all():
                    continue
                median, low, high = np.nanquantile(shares, [0.5, 0.1, 0.9], axis=0)
                colour = style.kind_colour(kind)
                ax.plot(shown, median, color=colour, marker="o", markersize=2.5, label=kind)
                ax.fill_between(shown, low, high, color=colour, alpha=0.16, linewidth=0)
            shape = _typical_shape(clear)
            noise = noise_curve(*shape, 4000)
            at = [r for r in shown if r <= min(shape)]
            energy = np.interp(at, noise.at, noise.energy)
            ax.plot(at, energy, color=style.MUTED, linestyle="--", linewidth=1, label="noise")
            ax.set_xscale("log", base=2)
            ax.set_xticks(shown, [str(r) for r in shown])
            ax.set(xlabel="adapter rank r", ylabel="energy kept", ylim=(0, 1.03), xlim=(0.9, 1.17 * shown[-1]))
            style.ticks(ax.yaxis, share=True)
            handles = ax.get_legend_handles_labels()[0]
            band = Patch(facecolor=style.MUTED, alpha=0.25, label="middle 80 % of the matrices")
            ax.legend(handles=[*handles, band], loc="lower right")
        return ax

    def ranks(self, metric: str = "rank_90", columns: int = 2) -> Any:
        """A rank by layer, one panel per module kind, with that of noise of the same shape dashed (for rank_90).

        Raises:
            OptionError: No matrix inside a layer has a value that may be quoted.
        """
        if metric not in (known := self.layers.frame.select_dtypes("number").columns):
            raise OptionError(f"there is no column {metric!r} of numbers.{near(metric, known)}")
        clear = self._readable()
        rows = clear[clear["layer"].notna() & clear[metric].notna()]
        if not len(rows):
            raise OptionError(f"no matrix inside a layer has a value of {metric} that may be quoted")
        kinds = [k for k in self.layers.kinds if (rows["kind"] == k).any()]
        null = ["rank_90_null"] if metric == "rank_90" else []
        labelled = []
        with style.settings():
            _, axes = style.figure(2.3, columns, 1, len(kinds), sharey=True)
            for ax, kind in zip(axes[0], kinds, strict=True):
                part = rows[rows["kind"] == kind]
                slots = sorted(dict.fromkeys(part["site"]), key=lambda s: place(s, str(kind)))
                shortened = endings(slots)
                shades = style.kind_shades(kind, len(slots))
                ends = []
                for slot, colour in zip(slots, shades, strict=True):
                    line = part[part["site"] == slot].groupby("layer")[[metric, *null]].median()
                    ax.plot(line.index, line[metric], color=colour, marker="o", markersize=2)
                    if null:
                        ax.plot(line.index, line["rank_90_null"], color=style.MUTED, linestyle="--", linewidth=0.7)
                    ends.append(
                        (
                            float(line.index[-1]),
                            float(line[metric].iloc[-1]),
                            style.label(shortened[slot], 18),
                            colour,
                        )
                    )
                ax.set(title=kind, xlabel="layer")
                ax.xaxis.get_major_locator().set_params(integer=True)
                labelled.append((ax, ends[:12]))
            axes[0, 0].set_ylim(0, 1.08 * float(rows[[metric, *null]].max().max()))
            for ax, ends in labelled:
                style.end_labels(ax, ends, gap=0.065)
            axes[0, 0].set_ylabel(heatmaps.metric_label(metric))
        return axes[0] if len(kinds) > 1 else axes[0, 0]

    def precision(self, columns: int = 2) -> Axes:
        """The share of each matrix's energy that rounding explains, by module.

        Raises:
            OptionError: No changed matrix was stored with rounding.
        """
        changed = self.layers.changed
        share = (changed["rounding_noise"] / changed["fro_norm"]) ** 2
        rows = changed.assign(share=share)[share > 0]
        if not len(rows):
            raise OptionError("no changed matrix of this analysis carries rounding")
        ax = self._strip(rows, "share", columns, "share of ‖ΔW‖² that rounding explains", log=True)
        low, high = float(rows["share"].min()), float(rows["share"].max())
        ax.set_xlim(min(low / 2, RESOLVED / 4), max(high * 2, 4.0))
        style.ticks(ax.xaxis, share=True)
        left, right = ax.get_xlim()
        edges = (left, RESOLVED, NOISY, right)
        for start, end, text in zip(edges[:-1], edges[1:], ("resolved", "noisy", "below\nprecision"), strict=True):
            if start > left:
                ax.axvline(start, color=style.MUTED, linewidth=0.7, linestyle="--")
            at = math.sqrt(start * end)  # the middle of the band, on a logarithmic axis
            ax.annotate(
                text, (at, 1.01), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=6.5,
                color=style.MUTED,
            )  # fmt: skip
        return ax

    def change(self, columns: int = 2) -> Axes:
        """The relative change of each matrix, by module.

        Raises:
            OptionError: No changed matrix has a base to compare with.
        """
        rows = self.layers.changed[self.layers.changed["relative_change"] > 0]
        if not len(rows):
            raise OptionError("no changed matrix of this analysis has a relative change")
        return self._strip(rows, "relative_change", columns, "relative change ‖ΔW‖ / ‖W0‖")

    def shrinkage(self, columns: int = 2) -> Axes:
        """The factor c by which each matrix shrank along its base, by module.

        Raises:
            OptionError: No changed matrix has a base to compare with.
        """
        rows = self.layers.changed[self.layers.changed["shrinkage"].notna()]
        if not len(rows):
            raise OptionError("no changed matrix of this analysis has a shrinkage")
        ax = self._strip(rows, "shrinkage", columns, "shrinkage c", log=False)
        ax.axvline(0, color=style.MUTED, linewidth=0.7)
        return ax

    def _readable(self, *, resolved: bool = False) -> pd.DataFrame:
        """The matrices of which a rank may be quoted; with `resolved`, those whose σ hold no rounding to speak of.

        Raises:
            OptionError: There is none.
        """
        rows = self.layers.readable
        if resolved:
            rows = rows[rows["resolution"].isin(CLEAR)]
        if not len(rows):
            raise OptionError("rounding hides the rank of every changed matrix")
        return rows

    def _strip(self, rows: pd.DataFrame, column: str, columns: int, label: str, log: bool | None = None) -> Axes:
        """One dot per matrix, one line per module, the largest median on top; the first layer is highest in its line.

        Args:
            rows: The matrices.
            column: What is drawn.
            columns: Width, 1 or 2.
            label: Of the axis.
            log: A logarithmic share; None: a share, logarithmic where it spans a factor of 5; False: a linear number.
        """
        medians = rows.groupby("site")[column].median().sort_values(ascending=False)[:MOST]
        with style.settings():
            _, axes = style.figure(min(len(medians) * 0.19 + 0.75, 8.5), columns)
            ax: Axes = axes[0, 0]
            for line, slot in enumerate(medians.index):
                part = _thinned(rows[rows["site"] == slot], column).sort_values("layer")
                y = line + (np.linspace(-0.26, 0.26, len(part)) if len(part) > 1 else np.zeros(1))
                ax.scatter(part[column], y, s=9, alpha=0.8, linewidth=0, color=[*map(style.kind_colour, part["kind"])])
            ax.scatter(medians, range(len(medians)), marker="|", s=60, color=style.INK, linewidth=1.1, zorder=5)
            style.limits(ax.xaxis, rows[column])
            if log or (log is None and rows[column].max() > 5 * rows[column].min()):
                style.log_scale(ax.xaxis, share=True)
            else:
                style.ticks(ax.xaxis, share=log is None)
            ax.set_yticks(range(len(medians)), [style.label(s) for s in medians.index])
            if int(rows.groupby("site").size()[medians.index].max()) > DOTS:
                label += f"\n(lines of more than {DOTS} matrices: {DOTS} of them, evenly by rank)"
            ax.set(xlabel=label, ylabel="", ylim=(len(medians) - 0.4, -0.6))
            ax.tick_params(axis="y", length=0)
            ax.grid(False, axis="y")
        return ax

    def _by_kind(self, columns: int, cumulative: bool) -> Any:
        frame = self._readable(resolved=True) if cumulative else self.layers.changed
        frame = frame[frame["key"].isin(self._analysis.spectra)]
        kinds = [k for k in self.layers.kinds if (frame["kind"] == k).any()]
        if not kinds:
            raise OptionError("no changed matrix of this analysis has a spectrum to draw")
        floors: list[float] = []
        with style.settings():
            _, axes = style.figure(2.2, columns, 1, len(kinds), sharey=True)
            for ax, kind in zip(axes[0], kinds, strict=True):
                rows = frame[frame["kind"] == kind]
                ax.set_title(f"{short(kind, 14)} ({len(rows)})")
                if cumulative:
                    self._cumulative(ax, rows)
                else:
                    floors.append(self._sigma(ax, rows, named=ax is axes[0, 0]))
                style.log_scale(ax.xaxis)
                ax.set_xlabel("direction i" if not cumulative else "rank r")
            if not cumulative:
                axes[0, 0].set_yscale("log")
                axes[0, 0].set_ylim(bottom=min(floors))
                style.ticks(axes[0, 0].yaxis)
            axes[0, 0].set_ylabel("energy of the first r" if cumulative else "σᵢ / root-mean-square σ")
        return axes[0] if len(kinds) > 1 else axes[0, 0]

    def _sigma(self, ax: Axes, rows: pd.DataFrame, *, named: bool) -> float:
        """Draw the spectra of one kind; returns where the axis may end: what is below is rounding or the solver's."""
        floor = math.inf
        for (_, row), colour in _selected(rows):
            spectrum = self._analysis.spectra[row["key"]]
            drawn = curve(spectrum, 90)
            unit = float(row["fro_norm"]) / math.sqrt(min(spectrum.rows, spectrum.cols))
            seen = drawn.sigma > 1e-6 * drawn.sigma[0]  # below is the solver's own error
            y = np.where(seen, drawn.sigma / unit, np.nan)
            edge = float(row["noise_edge"]) / unit if row["noise_edge"] > 0 else 0.0
            ax.plot(drawn.at, np.where(y > edge, y, np.nan), color=colour, linewidth=0.7, alpha=0.7)
            ax.plot(drawn.at, np.where(y <= edge, y, np.nan), color=style.MUTED, linewidth=0.5, alpha=0.45)
            floor = min(floor, max(edge / 2, float(y[seen][-1]) / 1.5, float(y[0]) * DEEPEST))
        shape = _typical_shape(rows)
        noise = noise_curve(*shape, 90)
        level = noise.sigma * math.sqrt(min(shape))
        ax.plot(noise.at, level, color=style.INK, linestyle="--", linewidth=0.9)
        if named:
            ax.annotate("noise", (1, float(level[0])), (2, -8), textcoords="offset points", fontsize=6.5)
        return floor

    def _cumulative(self, ax: Axes, rows: pd.DataFrame) -> None:
        for (_, row), colour in _selected(rows):
            drawn = curve(self._analysis.spectra[row["key"]], 90)
            ax.plot(drawn.at, drawn.energy, color=colour, linewidth=0.7, alpha=0.7)
        noise = noise_curve(*_typical_shape(rows), 90)
        ax.plot(noise.at, noise.energy, color=style.INK, linestyle="--", linewidth=0.9)
        ax.axhline(0.9, color=style.MUTED, linewidth=0.6, linestyle=":")
        ax.set_ylim(0, 1.02)
        style.ticks(ax.yaxis, share=True)


def endings(names: list[str]) -> dict[str, str]:
    """The shortest ending of each dotted name that no other of them has: `self.query`, `output.dense`."""
    out = {}
    for name in names:
        parts = name.split(".")
        tails = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        others = [o for o in names if o != name]
        out[name] = next((t for t in tails if not any(o == t or o.endswith("." + t) for o in others)), name)
    return out


def _selected(rows: pd.DataFrame) -> list[tuple[Any, str]]:
    """Rows evenly chosen over the layers, each in the colour of its kind."""
    ordered = rows.sort_values("layer", na_position="first")
    at = np.unique(np.linspace(0, len(ordered) - 1, min(MANY, len(ordered))).astype(int))
    return [(item, style.kind_colour(item[1]["kind"])) for item in ordered.iloc[at].iterrows()]


def _typical_shape(rows: pd.DataFrame) -> tuple[int, int]:
    """The most frequent shape, larger side first."""
    shapes = [(max(m, n), min(m, n)) for m, n in zip(rows["rows"], rows["cols"], strict=True)]
    m, n = max(set(shapes), key=lambda s: (shapes.count(s), s))
    return int(m), int(n)


def _log(ax: Axes, sigma: Any) -> None:
    positive = sigma[sigma > sigma[0] * 1e-7] if len(sigma) else sigma
    ax.set_xscale("log")
    if len(positive):
        ax.set_ylim(float(positive[-1]) * 0.5, float(positive[0]) * 2)
    style.log_scale(ax.xaxis)
    style.log_scale(ax.yaxis)


def _thinned(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """At most `DOTS` of the rows, evenly by their rank in a column, the smallest and the largest among them."""
    if len(rows) <= DOTS:
        return rows
    return rows.sort_values(column).iloc[np.linspace(0, len(rows) - 1, DOTS).round().astype(int)]
