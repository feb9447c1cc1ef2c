"""The look of every figure: colours, sizes and how a figure is made, for both reports and for papers.

Colours follow Okabe & Ito (2008), darkened where needed to reach a contrast of 3:1 on white; a group keeps its colour
in every figure. Figures are matplotlib objects without pyplot's global state; matplotlib's settings are global, so one
lock guards them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from deltaw.reports import ramp
from deltaw.reports.text import NARROW

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLUMN = {1: 3.35, 2: 6.9}  # inches: one and two columns of a paper
INK, MUTED, LINE, PALE = "#1c2128", "#59636e", "#d1d9e0", "#eaeef2"

KINDS: dict[str, str] = {
    "attention": "#0072b2",
    "mlp": "#d55e00",
    "embedding": "#00865f",
    "head": "#b4568c",
    "norm": "#9a7500",
    "conv": "#3a8fbf",
    "other": "#6e7781",
}
# Groups of runs (`deltaw.reports.comparison`): first the reference, then in order of appearance.
GROUPS = ("#1c2128", "#0072b2", "#d55e00", "#00865f", "#b4568c", "#9a7500", "#3a8fbf", "#7a52a3", "#6e7781")
RESOLUTION = {"resolved": "#0072b2", "noisy": "#9a7500", "below_precision": "#d55e00"}
SEQUENTIAL = "crest"

# What the same colour is on a dark page; `deltaw.reports.svg` writes both as one CSS variable.
DARK: dict[str, str] = {
    **ramp.DARK,
    INK: "#e6e9ee",
    MUTED: "#9ba6b2",
    LINE: "#343c46",
    PALE: "#232a32",
    "#0072b2": "#54aeea",
    "#d55e00": "#f08a4b",
    "#00865f": "#3fbf95",
    "#b4568c": "#e08cbc",
    "#9a7500": "#d9ad33",
    "#3a8fbf": "#8ccbee",
    "#6e7781": "#a5aeb8",
    "#7a52a3": "#b592dc",
}

SHADES = 6


def _text_safe(colour: str) -> str:
    """The colour, darkened until a text in it can be read on white (4.5:1)."""
    return next(c for c in ramp.shades(colour, 30, most=0.6) if ramp.contrast(c, "#ffffff") >= 4.5)


# Shades of each kind for the lines of its modules and their names: darker on a light page, lighter on a dark one.
KIND_SHADES = {kind: ramp.shades(_text_safe(colour), SHADES, most=0.6) for kind, colour in KINDS.items()}
for _kind, _colour in KINDS.items():
    DARK.update(zip(KIND_SHADES[_kind], ramp.shades(DARK[_colour], SHADES, "#ffffff", 0.7), strict=True))

FAMILY = ["DejaVu Sans"]
SETTINGS: dict[str, str | float | bool | Sequence[str]] = {
    "font.family": FAMILY,
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "deltaw",
    "axes.unicode_minus": True,
    "text.parse_math": False,  # a `$` in a tensor's name is a dollar
}

_lock = threading.RLock()


@contextmanager
def settings(**more: Any) -> Iterator[None]:
    """The settings of matplotlib for the figures of deltaw, while the block runs."""
    import matplotlib as mpl

    with _lock, mpl.rc_context({**SETTINGS, **more}):
        yield


def kind_colour(kind: str) -> str:
    """The colour of a module kind, the same in every figure."""
    return KINDS.get(kind, KINDS["other"])


def kind_shades(kind: str, count: int) -> list[str]:
    """Colours for `count` modules of a kind, as far apart as they can be."""
    known = KIND_SHADES.get(kind, KIND_SHADES["other"])
    return [known[round(i * (SHADES - 1) / max(count - 1, 1)) if count <= SHADES else i % SHADES] for i in range(count)]


def figure(height: float, columns: int = 2, rows: int = 1, cols: int = 1, **subplots: Any) -> tuple[Figure, Any]:
    """A figure of one or two columns' width and its axes, without pyplot.

    Args:
        height: In inches.
        columns: The width: 1 or 2 columns of a paper.
        rows, cols: The grid of axes.
        subplots: Passed to `Figure.subplots`.

    Returns:
        The figure and an array of axes (rows × cols).
    """
    from matplotlib.figure import Figure

    fig = Figure(figsize=(COLUMN[columns], height), layout="constrained")
    axes = fig.subplots(rows, cols, squeeze=False, **subplots)
    return fig, axes


def settle(fig: Figure) -> None:
    """Lay a figure out once and keep it so: matplotlib would do it twice for every file that it writes."""
    if (engine := fig.get_layout_engine()) is not None:
        engine.execute(fig)
        fig.set_layout_engine("none")


def log_scale(axis: Axis, share: bool = False) -> None:
    """A logarithmic axis with `ticks`."""
    (axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale)("log")
    ticks(axis, share)


def ticks(axis: Axis, share: bool = False) -> None:
    """Ticks as plain text: 0.01, 10, 10⁻⁷, or 1 %; matplotlib's own logarithmic ones are formulas, which are off."""
    from matplotlib.ticker import LogLocator, NullFormatter

    from deltaw.reports.tick_labels import TickLabels, linear, logarithmic

    scale, unit = (100, f"{NARROW}%") if share else (1, "")
    if axis.get_scale() == "linear":
        axis.set_major_formatter(TickLabels(linear, scale, unit))
        return
    low, high = sorted(axis.get_view_interval())
    narrow = high / max(low, 1e-300) < 300
    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if narrow else (1,), numticks=8))
    axis.set_major_formatter(TickLabels(logarithmic, scale, unit))
    axis.set_minor_formatter(NullFormatter())


def limits(axis: Axis, values: Iterable[float]) -> None:
    """Room around numbers that are nearly equal: a tenth of them on each side, where they span less than that.

    An axis of the last digits would show rounding as a pattern.
    """
    known = np.array([v for v in values if math.isfinite(v)])
    if not known.size:
        return
    low, high, middle = float(known.min()), float(known.max()), float(np.median(known))
    reach = 0.1 * max(abs(low), abs(high))
    if high - low < reach:
        axis.set_view_interval(middle - reach, middle + reach, ignore=True)
        axis.axes.autoscale(enable=False, axis="x" if axis is axis.axes.xaxis else "y")


def step(least: float) -> int:
    """The round number 1, 2, 5, 10, 20, … that is at least `least`: of labels, one in so many is shown."""
    if least <= 1:
        return 1
    ten = 10 ** math.floor(math.log10(least))
    return next(int(m * ten) for m in (1, 2, 5, 10) if m * ten >= least)


def label(text: str, limit: int = 34) -> str:
    """A name as a label of a figure: short, and without characters that the figure's font lacks."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    from deltaw.reports.text import short

    font = get_font(findfont(FontProperties(family=FAMILY)))
    return "".join(c if font.get_char_index(ord(c)) else "\N{REPLACEMENT CHARACTER}" for c in short(text, limit))


def end_labels(axes: Axes, ends: Sequence[tuple[float, float, str, str]], gap: float = 0.055) -> None:
    """Names written at the right end of lines, moved apart where they would overlap.

    Args:
        axes: Where the lines are.
        ends: x, y (data), text and colour of each.
        gap: The least distance of two labels, as a share of the axes' height.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    placed: list[tuple[float, str, str]] = []
    for x, y, text, colour in sorted(ends, key=lambda e: e[1]):
        height = float(to_axes.transform((x, y))[1])
        if placed:
            height = max(height, placed[-1][0] + gap)
        placed.append((height, text, colour))
    overflow = max(placed[-1][0] - 1.0, 0.0) if placed else 0.0
    for height, text, colour in placed:
        axes.annotate(text, (1.015, height - overflow), xycoords="axes fraction", color=colour, fontsize=7, va="center")
