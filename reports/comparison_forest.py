"""The claims as forest plots: every comparison with its adjusted interval, beside the line that the claim draws."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deltaw.errors import OptionError
from deltaw.reports import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from deltaw.comparison.claims.verdicts import Claim, Decision

SHOWN = 24  # claims in one figure
MOST = 8  # comparisons of one claim
AGREE, AGAINST = "#0072b2", "#d55e00"
SIDES = {1: AGREE, -1: AGAINST, 0: style.MUTED}


def forest(claims: Sequence[Claim], columns: int = 2) -> Any:
    """One panel for each claim that has a comparison, in the order of the list.

    A filled dot is decided at 5 %, in the colour of its side; a hollow one is not. Without seeds there is no interval.

    Raises:
        OptionError: No claim has a comparison.
    """
    told = [c for c in claims if c.evidence][:SHOWN]
    if not told:
        raise OptionError("these runs cannot be checked against any claim")
    rows = [min(len(c.evidence), MOST) for c in told]
    with style.settings():
        titles = [_title(c) for c in told]
        height = sum(0.16 * n + 0.4 + 0.13 * t.count("\n") for n, t in zip(rows, titles, strict=True)) + 0.1
        fig, axes = style.figure(height, columns, len(told), 1, height_ratios=[n + 0.8 for n in rows])
        for ax, claim, title in zip(axes[:, 0], told, titles, strict=True):
            _panel(ax, claim)
            ax.set_title(title, fontsize=7, loc="left")
        fig.align_ylabels()
    return axes[:, 0]


def _title(claim: Claim) -> str:
    """The verdict with its grade, and the claim, in lines that fit above the panel."""
    grade = f", {claim.grade}" if claim.grade else ""
    about = f" ({claim.about})" if claim.about else ""
    more = f"; {len(claim.evidence) - MOST} more in the table" if len(claim.evidence) > MOST else ""
    return textwrap.fill(style.label(f"{claim.verdict}{grade}: {claim.text}{about}{more}", 200), 84)


def _panel(ax: Axes, claim: Claim) -> None:
    decisions = claim.decisions[:MOST]
    lines = {line: None for d in decisions for line in map(_value(d), d.evidence.lines)}
    for line in lines:
        ax.axvline(line, color=style.INK, linewidth=0.8, linestyle=(0, (3, 2)), zorder=0.5)
    reach = _reach(decisions, list(lines))
    for y, d in enumerate(decisions):
        value, low, high = d.evidence.interval(d.alpha)
        colour = SIDES[d.speaks]
        if math.isfinite(low):
            ax.plot([low, high], [y, y], color=colour, linewidth=1.2, solid_capstyle="butt")
        face = colour if d.speaks else "white"
        ax.plot(value, y, marker="o", markersize=4, color=colour, markerfacecolor=face, linestyle="")
    ax.set_yticks(range(len(decisions)), [style.label(d.evidence.what, 36) for d in decisions], fontsize=6)
    ax.set_ylim(len(decisions) - 0.4, -0.6)
    if decisions[0].evidence.scale == "ratio":
        ax.set_xscale("log")
    ax.set_xlim(*reach)
    _ticks(ax)
    ax.grid(axis="y", visible=False)


def _value(d: Decision) -> Any:
    """How a number on the estimate's scale is shown."""
    if d.evidence.scale == "ratio":
        return math.exp
    return math.tanh if d.evidence.scale == "correlation" else float


def _reach(decisions: Sequence[Decision], lines: Sequence[float]) -> tuple[float, float]:
    """The ends of the axis: every dot and line, and intervals as far as they do not hide both."""
    ratio = decisions[0].evidence.scale == "ratio"
    intervals = [d.evidence.interval(d.alpha) for d in decisions]
    dots = [*(i.value for i in intervals), *lines]
    ends = [e for i in intervals for e in i[1:] if math.isfinite(e) and (e > 0 or not ratio)]
    scale = math.log if ratio else float
    shown = [scale(v) for v in dots if v > 0 or not ratio]
    low, high = min(shown), max(shown)
    spread = max(high - low, 1e-9 * max(abs(high), abs(low), 1e-9))
    wide = [min(max(scale(e), low - 1.5 * spread), high + 1.5 * spread) for e in ends]
    low, high = min([low, *wide]), max([high, *wide])
    margin = 0.06 * (high - low) or 0.1
    low, high = low - margin, high + margin
    return (math.exp(low), math.exp(high)) if ratio else (low, high)


def _ticks(ax: Axes) -> None:
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    from deltaw.reports.text import number

    if ax.get_xscale() == "log":
        low, high = (math.log10(v) for v in ax.get_xlim())
        at = [10 ** (low + (high - low) * share) for share in (0.1, 0.5, 0.9)]
        ax.xaxis.set_major_locator(FixedLocator([float(f"{v:.2g}") for v in at]))
        ax.xaxis.set_minor_locator(NullLocator())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_formatter(lambda v, _: number(v, 3))
    ax.tick_params(axis="x", labelsize=6)
