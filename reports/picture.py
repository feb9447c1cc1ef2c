"""The summary as one picture of 1200 × 630 pixels, as a link's preview has: names, word, numbers, heatmap."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from deltaw.reports import heatmaps, style
from deltaw.reports.findings import five, word
from deltaw.reports.layers import Layers
from deltaw.reports.sides import names_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from deltaw.results.analysis import Analysis

WIDTH, HEIGHT, DPI = 1200, 630, 100  # pixels
LEFT, RIGHT = 0.045, 0.955  # of the width
NAME = 44  # characters of a name


def draw(analysis: Analysis) -> Figure:
    """The picture; save it with `dpi=DPI` to have it in its size."""
    from matplotlib.figure import Figure

    summary = analysis.summary
    with style.settings():
        fig = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI))
        base, ft = names_of(analysis.base, analysis.ft)
        before = f"{style.label(base, NAME)} →" if analysis.base else ""
        fig.text(LEFT, 0.925, before, fontsize=17, color=style.MUTED, va="center")
        fig.text(LEFT, 0.855, style.label(ft, NAME), fontsize=24, weight="bold", va="center")
        fig.text(
            RIGHT, 0.89, word(summary.verdict), fontsize=21, weight="bold", ha="right", va="center",
            color=style.kind_shades("attention", 1)[0],
        )  # fmt: skip
        for i, number in enumerate(five(summary)):
            x = LEFT + i * (RIGHT - LEFT) / 5
            fig.text(x, 0.755, number.label, fontsize=12, color=style.MUTED, va="center")
            fig.text(x, 0.69, number.value, fontsize=21, weight="bold", va="center")
        _heatmap(fig, analysis)
        version = analysis.versions.get("deltaw", "")
        fig.text(RIGHT, 0.035, f"deltaw {version}".rstrip(), fontsize=11, color=style.MUTED, ha="right", va="center")
    return fig


def _heatmap(fig: Figure, analysis: Analysis) -> None:
    """The first heatmap of the report, as it is, in what room is left; none where nothing changed."""
    from matplotlib.image import imread

    layers = Layers(analysis)
    metric = "relative_change" if layers.changed["relative_change"].notna().any() else "fro_norm"
    prepared = heatmaps.prepare(layers, metric)
    if prepared is None:
        return
    buffer = io.BytesIO()
    drawn = heatmaps.draw(prepared).get_figure(root=True)
    assert drawn is not None
    drawn.savefig(buffer, format="png", dpi=2 * DPI)
    ax = fig.add_axes((LEFT, 0.07, RIGHT - LEFT, 0.56))
    buffer.seek(0)
    ax.imshow(imread(buffer, format="png"))
    ax.axis("off")
