"""How alike the updates of each pair of runs are, coloured by how far above that pair's own chance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from deltaw.reports import style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

SIMILARITIES = {"phi_left": "φ, output directions", "phi_right": "φ, input directions", "cosine": "cosine of ΔW"}
NAMED = 8  # runs whose numbers fit into the cells
NUMBERED = 12  # runs that can all have their number below
HEIGHT = 2.3  # inches: three square panels beside each other


def overlaps(frame: pd.DataFrame, names: list[str], columns: int = 2) -> Any:
    """One panel for each measure; the number is the overlap, the colour is the overlap less chance.

    Args:
        frame: Pairs of runs with their measures and the same by chance (`phi_left_null`, …).
        names: The runs, in order.
        columns: The width of the figure, in columns of a paper.
    """
    with style.settings():
        _, axes = style.figure(HEIGHT, columns, 1, len(SIMILARITIES), sharey=True)
        for ax, (column, title) in zip(axes[0], SIMILARITIES.items(), strict=True):
            _panel(ax, frame, names, column)
            ax.set_title(f"{title}\n({'chance: 0' if column == 'cosine' else 'colour: less chance'})")
        labels = [f"{style.label(n, 24)}  {i}" for i, n in enumerate(names, start=1)]
        axes[0, 0].set_yticks(np.arange(len(names)) + 0.5, labels, fontsize=5.5)
    return axes[0]


def above_chance(frame: pd.DataFrame, column: str) -> pd.Series[float]:
    """A measure less what chance gives that pair; the cosine of unrelated updates is 0."""
    return frame[column] if column == "cosine" else frame[column] - frame[f"{column}_null"]


def _panel(ax: Axes, frame: pd.DataFrame, names: list[str], column: str) -> None:
    import seaborn as sns

    at = {n: i for i, n in enumerate(names)}
    values, colours = (np.full((len(names), len(names)), math.nan) for _ in range(2))
    for a, b, value, colour in zip(
        frame["run_a"], frame["run_b"], frame[column], above_chance(frame, column), strict=True
    ):
        i, j = sorted((at[a], at[b]))
        values[j, i], colours[j, i] = value, colour
    few = len(names) <= NAMED
    texts = np.array([[f"{v:.2f}".replace("-0.00", "0.00").replace("-", "−") for v in row] for row in values])
    cmap, low = ("vlag", -1.0) if column == "cosine" else (style.SEQUENTIAL, 0.0)
    sns.heatmap(
        colours, ax=ax, vmin=low, vmax=1.0, cmap=cmap, cbar=not few, square=True, linewidths=0.3,
        cbar_kws={"shrink": 0.6, "aspect": 24, "ticks": [low, 0.0, 1.0] if low else [0.0, 0.5, 1.0]},
        annot=texts if few else False, fmt="", annot_kws={"fontsize": 5.5}, xticklabels=False, yticklabels=False,
    )  # fmt: skip
    numbers = range(1, len(names) + 1, math.ceil(len(names) / NUMBERED))  # as at the names on the left
    ax.set_xticks([n - 0.5 for n in numbers], list(map(str, numbers)), fontsize=5.5)
    ax.tick_params(length=0)
    ax.grid(visible=False)
