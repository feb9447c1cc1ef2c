"""Figures as files, for papers: SVG with its letters as outlines, PDF with its fonts, PNG at 300 dots per inch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltaw.errors import OptionError, ResultsError
from deltaw.files import refuse_link, replacing
from deltaw.reports import style
from deltaw.reports.plots import AnalysisPlots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from deltaw.results.analysis import Analysis

DPI = 300
# The formats, and what they would otherwise say of the day: the same figure gives the same bytes.
KINDS: tuple[tuple[str, dict[str, None]], ...] = (
    ("svg", {"Date": None}),
    ("pdf", {"CreationDate": None, "ModDate": None, "Producer": None, "Creator": None}),
    ("png", {"Software": None}),
)


def write_figures(analysis: Analysis, folder: Path) -> list[Path]:
    """Write every figure that applies to an analysis, see `deltaw.reports.write_figures`.

    Raises:
        ResultsError: A file cannot be written.
    """
    written = []
    for name, draw in figures_of(analysis).items():
        try:
            axes = draw()
        except OptionError:  # the figure does not apply; the report says why in its place
            continue
        written += save(of(axes), Path(folder), name)
    return [*written, summary_picture(analysis, Path(folder))] if written else written


def summary_picture(analysis: Analysis, folder: Path) -> Path:
    """Write `summary.png`: names, word, five numbers and the heatmap, 1200 × 630 pixels, for a link's preview.

    Raises:
        ResultsError: The file cannot be written.
    """
    from deltaw.reports import picture

    path = folder / "summary.png"
    try:
        with style.settings(), replacing(path) as temporary:
            picture.draw(analysis).savefig(temporary, format="png", dpi=picture.DPI, metadata={"Software": None})
    except OSError as e:
        raise ResultsError(f"{folder}: figures cannot be written ({e.strerror or e}); choose another place") from e
    return path


def figures_of(analysis: Analysis) -> dict[str, Callable[[], Any]]:
    """What draws each figure, by the name of its file; one that does not apply raises `OptionError`."""
    plots = AnalysisPlots(analysis)
    return {
        "relative_change": lambda: plots.heatmap("relative_change"),
        "relative_change_vectors": lambda: plots.heatmap("relative_change", vectors=True),
        "relative_change_modules": plots.change,
        "experts": plots.experts,
        "rounding": plots.precision,
        "shrinkage": plots.shrinkage,
        "rank_90_ratio": lambda: plots.heatmap("rank_90_ratio"),
        "effective_rank": lambda: plots.heatmap("effective_rank"),
        "relative_change_on_data": lambda: plots.heatmap("relative_change_on_data"),
        "selectivity": lambda: plots.heatmap("selectivity"),
        "rank_90": plots.ranks,
        "spectra": plots.spectra,
        "energy": plots.energy,
        "energy_kept": plots.kept,
    }


def of(axes: Any) -> Figure:
    """The figure that axes, or an array of them, are drawn in."""
    ax: Axes = axes if hasattr(axes, "figure") else axes.flat[0]
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def save(figure: Figure, folder: Path, name: str, kinds: Sequence[tuple[str, dict[str, None]]] = KINDS) -> list[Path]:
    """Write one figure as `name.svg`, `name.pdf` and `name.png`, or some of them; the same figure gives the same bytes.

    Raises:
        ResultsError: A file cannot be written.
    """
    out = []
    refuse_link(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with style.settings():
            style.settle(figure)
        for kind, metadata in kinds:
            path = folder / f"{name}.{kind}"
            with style.settings(**{"svg.fonttype": "path"}), replacing(path) as temporary:
                figure.savefig(temporary, format=kind, dpi=DPI, metadata=metadata)
            out.append(path)
    except OSError as e:
        raise ResultsError(f"{folder}: figures cannot be written ({e.strerror or e}); choose another place") from e
    return out
