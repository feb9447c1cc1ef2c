"""The figures of a comparison, as matplotlib axes: `plot.pareto()`, `.spectra()`, `.fingerprints()`, ….

A group has one colour, marker and line in all figures, an arm one colour in all domains, the reference is black.
Nothing here computes more than a mean: the numbers come from the comparison's tables.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from deltaw.errors import OptionError
from deltaw.reports import style
from deltaw.reports.comparison_forest import forest
from deltaw.reports.comparison_overlap import overlaps
from deltaw.reports.comparison_points import (
    ALL,
    by_block,
    decided_first,
    keyed,
    mean_curves,
    mean_of,
    reach,
    seed_average,
    setting_columns,
    tokens_label,
)
from deltaw.reports.curves import noise_curve
from deltaw.reports.order import place
from deltaw.results.columns import AS_CURVES, IN_PANELS, is_share

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from deltaw.comparison import Comparison

MARKERS = "osD^vPX"
LINES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
FEW = 8  # groups that can be named in the figure itself


class GroupStyle(NamedTuple):
    """How a group is drawn everywhere."""

    colour: str
    marker: str
    line: Any


class ComparisonPlots:
    """Draws a comparison. Every method takes `columns`, the width in columns of a paper, and returns its axes."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison

    @cached_property
    def looks(self) -> dict[str, GroupStyle]:
        """Colour, marker and line of each group; the reference is first and black.

        The colour is the arm's: what was trained the same way in two domains, but for the learning rate, has one. The
        marker and the line are the domain's.
        """
        from deltaw.comparison.runs import arena

        c = self._comparison
        ordered = [c.reference, *(g for g in c.groups if g != c.reference)]
        places = {g: arena(c.runs_.chosen[g]) for g in ordered}
        domains = list(dict.fromkeys(places.values()))
        colours = len(style.GROUPS)
        arms: dict[tuple[Any, ...], int] = {}
        taken: set[tuple[Any, ...]] = set()
        out = {}
        for g in ordered:
            arm = self._arm(g)
            if (places[g], arm) in taken:  # the runs do not say what tells the groups apart
                arm = (*arm, g)
            taken.add((places[g], arm))
            i = arms.setdefault(arm, len(arms))
            shape = i // colours * len(domains) + domains.index(places[g])
            out[g] = GroupStyle(style.GROUPS[i % colours], MARKERS[shape % len(MARKERS)], LINES[shape % len(LINES)])
        return out

    def _arm(self, group: str) -> tuple[Any, ...]:
        """What tells a group from the others of its domain: the method and its hyperparameters."""
        runs = self._comparison.runs_
        known = runs.chosen[group].hyperparameters
        told = tuple((k, str(v)) for k, v in known if k not in {"domain", "training", "learning_rate", "lr"})
        return (runs.representatives(group)[0].method, *told)

    def pareto(self, columns: int = 2) -> Any:
        """Learning against retention: a point per run, a group's settings joined along tokens, the front marked.

        One panel per domain and kind of training.

        Raises:
            OptionError: No run has both scores.
        """
        frame = keyed(self._comparison.runs())
        scored = frame[frame["learning"].notna() & frame["retention"].notna()]
        if not len(scored):
            raise OptionError("no run has scores of both learning and retention")
        panels = self._panels(scored)
        wide = min(len(panels), 2)
        with style.settings():
            fig, axes = style.figure(2.9 * math.ceil(len(panels) / wide), columns, math.ceil(len(panels) / wide), wide)
            for ax, (title, part) in zip(axes.flat, panels.items(), strict=False):
                self._pareto_panel(ax, part)
                ax.set(xlabel="learning →", ylabel="retention →", title=title)
            for ax in list(axes.flat)[len(panels) :]:
                ax.remove()
            self._name(fig, list(dict.fromkeys(scored["group"])), points=True)
        return axes[0, 0] if len(panels) == 1 else axes

    def _panels(self, scored: pd.DataFrame) -> dict[str, pd.DataFrame]:
        from deltaw.comparison.runs import arena

        settings = {r.spec.name: " ".join(filter(None, arena(r.setting))) for r in self._comparison.runs_.items}
        labels = scored["run"].map(settings)
        return {style.label(str(label)): scored[labels == label] for label in dict.fromkeys(labels)}

    def _pareto_panel(self, ax: Axes, part: pd.DataFrame) -> None:
        small = len(part) > 30
        for group, points in part.groupby("group", sort=False):
            look = self.looks[str(group)]
            for _, curve in mean_curves(points):
                ax.plot(curve["learning"], curve["retention"], color=look.colour, linestyle=look.line, linewidth=1)
            size = 14 if small else 26
            ax.scatter(
                points["learning"], points["retention"], s=size, color=look.colour, marker=look.marker, alpha=0.45,
                linewidth=0,
            )  # fmt: skip
            means = points.groupby(setting_columns(points), dropna=False, sort=False)[["learning", "retention"]].mean()
            ax.scatter(
                means["learning"], means["retention"], s=1.5 * size, color=look.colour, marker=look.marker, linewidth=0
            )
        best = part[part["on_front"].eq(True)]
        corners = best.groupby(["group", *setting_columns(best)], dropna=False)[["learning", "retention"]].mean()
        corners = corners.sort_values("learning")
        ax.plot(
            corners["learning"], corners["retention"], color=style.MUTED, linewidth=3.5, alpha=0.25, zorder=0.5,
            solid_capstyle="round",
        )  # fmt: skip
        ax.margins(0.09)
        style.ticks(ax.xaxis)
        style.ticks(ax.yaxis)

    def spectra(self, columns: int = 2) -> Any:
        """Mean singular spectra by group, one panel per kind of module, with that of noise of the same norm.

        Raises:
            OptionError: No run has spectra.
        """
        runs = self._comparison.runs_
        kinds: dict[str, int] = {}
        for r in runs.items:
            for kind, c in r.curves.items():
                kinds[kind] = max(kinds.get(kind, 0), c.matrices)
        shown = [k for k in ("attention", "mlp", "embedding", "head", "conv", "other") if k in kinds][:3]
        if not shown:
            raise OptionError("no run has a spectrum: there are scores only, or nothing changed")
        with style.settings():
            fig, axes = style.figure(2.6, columns, 1, len(shown), sharey=True)
            drawn: dict[str, None] = {}
            for ax, kind in zip(axes[0], shown, strict=True):
                lowest = 1.0
                for group in self.looks:
                    found = [r.curves[kind] for r in runs.representatives(group) if kind in r.curves]
                    if not found:
                        continue
                    x, y = mean_of(found)
                    lowest = min(lowest, float(np.nanmin(y, initial=1.0)))
                    look = self.looks[group]
                    ax.plot(x, y, color=look.colour, linestyle=look.line, linewidth=1.1, alpha=0.9)
                    drawn[group] = None
                shape = self._shape(kind)
                noise = noise_curve(*shape)
                ax.plot(noise.at, noise.sigma, color=style.MUTED, linestyle=":", linewidth=1.2)
                ax.set(title=f"{kind} ({shape[0]} × {shape[1]})", xlabel="i")
                style.log_scale(ax.xaxis)
                ax.set_ylim(max(lowest * 0.7, 1e-5), 1.3)
                style.log_scale(ax.yaxis)
            axes[0, 0].set_ylabel("σᵢ / ‖ΔW‖")
            self._name(fig, list(drawn), noise="noise of the same norm")
        return axes[0]

    def _shape(self, kind: str) -> tuple[int, int]:
        """The most frequent shape of a kind."""
        layers = self._comparison.layers()
        found = layers[layers["kind"] == kind][["rows", "cols"]].value_counts()
        rows, cols = found.index[0]
        return int(rows), int(cols)

    def fingerprints(self, columns: int = 2) -> Any:
        """What each group's update looks like: one panel per quantity, medians with their 95 % intervals.

        Raises:
            OptionError: No group has a value.
        """
        frame = self._comparison.fingerprints().set_index("group")
        groups = list(self.looks)
        shown = [q for q in IN_PANELS if frame[q].notna().any()]
        if not shown:
            raise OptionError("no group has a value")
        wide = 4
        rows = math.ceil(len(shown) / wide)
        with style.settings():
            height = rows * (0.62 + 0.165 * max(len(groups), 2))
            _, axes = style.figure(height, columns, rows, wide, sharey=True)
            for ax, quantity in zip(axes.flat, shown, strict=False):
                self._fingerprint_panel(ax, frame, quantity, groups)
            for ax in list(axes.flat)[len(shown) :]:
                ax.set_axis_off()
            for row in axes:
                row[0].set_yticks(range(len(groups)), [style.label(g, 26) for g in groups])
                row[0].set_ylim(len(groups) - 0.4, -0.6)
        return axes

    def _fingerprint_panel(self, ax: Axes, frame: pd.DataFrame, quantity: str, groups: list[str]) -> None:
        from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator

        label, log = IN_PANELS[quantity]
        share = is_share(quantity)
        values = frame.loc[groups, quantity].to_numpy(dtype=float)
        low, high = (frame.loc[groups, f"{quantity}_{e}"].to_numpy(dtype=float) for e in ("low", "high"))
        log = log and bool(np.nanmin(values) > 0)
        known = values[np.isfinite(values)]
        for y, group in enumerate(groups):
            look = self.looks[group]
            if math.isfinite(low[y]):
                ax.plot([low[y], high[y]], [y, y], color=look.colour, linewidth=1.1, solid_capstyle="butt")
            ax.plot(values[y], y, color=look.colour, marker=look.marker, markersize=3.5, linestyle="")
        ax.axvline(values[0], color=style.LINE, linewidth=0.8, zorder=0)
        left, right = reach(quantity, values, low, high, log=log)
        ax.set_xlim(left, right)
        if log:
            style.log_scale(ax.xaxis, share)
            wide = known.max() > 30 * known.min() or known.min() < 1e-3  # long labels: fewer of them fit
            ax.xaxis.set_major_locator(LogLocator(10, subs=(1,) if wide else (1, 3), numticks=5))
        else:
            # The digits follow the step: small numbers are long, and fewer of them fit.
            narrow = max(map(abs, ax.get_xlim())) < 0.01
            ticks = MaxNLocator(2 if narrow else 4)
            within = [t for t in ticks.tick_values(left, 1) if left <= t <= 1]  # the margin beyond all of it has none
            ax.xaxis.set_major_locator(FixedLocator(within) if right == ALL and len(within) > 1 else ticks)
            style.ticks(ax.xaxis, share)
        ax.set_title(label)
        ax.grid(axis="y", visible=False)

    def ranks(self, metric: str = "rank_90", columns: int = 2) -> Any:
        """A rank by layer, one small panel per module, one line per group; noise of the same shape dotted.

        Raises:
            OptionError: No run has this metric in a layer.
        """
        table = self._comparison.runs_.table
        block, modules = table.block, np.array(table.module)
        inside = np.isfinite(block) & np.isin(np.array(table.kind), ("attention", "mlp", "conv", "other"))
        values = {g: seed_average(table.metric(metric, self._comparison.runs_.representatives(g))) for g in self.looks}
        values = {g: v for g, v in values.items() if v.size and np.isfinite(v[inside]).any()}
        shown = [
            m
            for m in dict.fromkeys(modules[inside])
            if any(np.isfinite(v[inside & (modules == m)]).any() for v in values.values())
        ]
        if not shown:
            raise OptionError(f"no resolved matrix inside a layer has a value of {metric}")
        kinds = dict(zip(modules, table.kind, strict=True))
        shown = sorted(shown, key=lambda m: place(str(m), kinds[m]))[:12]
        wide = min(4, len(shown))
        rows = math.ceil(len(shown) / wide)
        with style.settings():
            fig, axes = style.figure(1.55 * rows + 0.2, columns, rows, wide, sharey=True, sharex=True)
            for ax, module in zip(axes.flat, shown, strict=False):
                here = inside & (modules == module)
                for group, v in values.items():
                    x, y = by_block(block[here], v[here])
                    look = self.looks[group]
                    ax.plot(
                        x, y, color=look.colour, linestyle=look.line, marker=look.marker, markersize=1.8, linewidth=0.9
                    )
                ax.set_title(style.label(str(module), 22))
                ax.xaxis.get_major_locator().set_params(integer=True, nbins=5)
            for i, ax in enumerate(list(axes.flat)[len(shown) :], start=len(shown)):
                ax.set_axis_off()
                axes.flat[i - wide].tick_params(labelbottom=True)  # nothing below carries its numbers
            axes[0, 0].set_yscale("log")
            style.ticks(axes[0, 0].yaxis)
            for row in axes:
                row[0].set_ylabel(metric)
            for ax in axes[-1]:
                ax.set_xlabel("layer")
            self._name(fig, list(values))
        return axes

    def trajectories(self, columns: int = 2) -> Any:
        """Scores, distance and rank over tokens, one panel each, one line per curve.

        Raises:
            OptionError: No group has runs at two numbers of tokens.
        """
        from matplotlib.ticker import MaxNLocator

        frame = self._comparison.trajectories()
        shown = [m for m in AS_CURVES if (frame["metric"] == m).any()]
        if not shown:
            raise OptionError("no group has runs at two or more numbers of tokens")
        with style.settings():
            fig, axes = style.figure(2.3, columns, 1, len(shown))
            for ax, metric in zip(axes[0], shown, strict=True):
                part = frame[frame["metric"] == metric]
                for (group, _), curve in part.groupby(["group", "curve"], sort=False):
                    look = self.looks[str(group)]
                    ax.plot(
                        curve["tokens"],
                        curve["value"],
                        color=look.colour,
                        linestyle=look.line,
                        marker=look.marker,
                        markersize=2.2,
                    )
                    if part["group"].nunique() <= FEW and (curve["n_seeds"] > 2).all():
                        top, bottom = part["value"].max(), part["value"].min()
                        spread = 0.5 * max(top - bottom, 1e-12)
                        low, high = (curve[e].clip(bottom - spread, top + spread) for e in ("low", "high"))
                        ax.fill_between(curve["tokens"], low, high, color=look.colour, alpha=0.1, linewidth=0)
                ax.set(title=AS_CURVES[metric], xlabel="tokens")
                ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
                style.ticks(ax.yaxis, metric == "relative_change")
                ax.xaxis.set_major_formatter(lambda v, _: tokens_label(v))
            self._name(fig, list(dict.fromkeys(frame["group"])))
        return axes[0]

    def similarity(self, kind: str = "all", columns: int = 2) -> Any:
        """How alike the updates of each pair of runs are, with what chance would give.

        Raises:
            OptionError: Similarity was not computed.
        """
        frame = self._comparison.similarity()
        frame = frame[frame["kind"] == kind]
        if not len(frame):
            raise OptionError(self._comparison.similarity_note.rstrip(".") or "no two runs changed the same matrix")
        runs = {*frame["run_a"], *frame["run_b"]}
        return overlaps(frame, [r.spec.name for r in self._comparison.runs_.items if r.spec.name in runs], columns)

    def claims(self, columns: int = 2) -> Any:
        """Every claim's comparisons with their adjusted intervals, beside the line that the claim draws.

        Raises:
            OptionError: No claim can be checked.
        """
        return forest(decided_first(self._comparison.checked), columns)

    def _name(self, fig: Figure, groups: list[str], points: bool = False, noise: str = "") -> None:
        """A legend of groups below the figure, in as many rows as it needs."""
        from matplotlib.lines import Line2D

        handles = []
        for g in (g for g in self.looks if g in set(groups)):
            look = self.looks[g]
            marker = look.marker if points else ""
            handles.append(
                Line2D(
                    [],
                    [],
                    color=look.colour,
                    linestyle=look.line,
                    marker=marker,
                    markersize=4,
                    label=style.label(g, 30),
                )
            )
        if noise:
            handles.append(Line2D([], [], color=style.MUTED, linestyle=":", label=noise))
        if points:
            handles.append(
                Line2D([], [], color=style.MUTED, alpha=0.3, linewidth=3.5, label="nothing is better on both")
            )
        across = 4 if max(len(str(h.get_label())) for h in handles) <= 20 else 3
        # The legend has its own strip: the panels keep their size however many groups there are.
        width, height = fig.get_size_inches()
        fig.set_size_inches(width, height + 0.14 * math.ceil(len(handles) / across) + 0.08)
        fig.legend(handles=handles, loc="outside lower center", ncols=across, fontsize=6.5, handlelength=2.4)
