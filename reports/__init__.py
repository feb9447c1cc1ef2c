"""Results into figures, tables, sentences and one HTML file. Never torch; drawing libraries load when first needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltaw.results.analysis import Analysis

__all__ = ["write_analysis", "write_figures"]


def write_analysis(analysis: Analysis, path: Path) -> Path:
    """Write the report of an analysis: one HTML file that opens offline.

    Raises:
        ResultsError: The file cannot be written.
    """
    from deltaw.reports import analysis_page

    return analysis_page.write_analysis(analysis, path)


def write_figures(analysis: Analysis, folder: Path) -> list[Path]:
    """Write the figures of an analysis as SVG and PNG, for papers: `relative_change.svg`, `spectra.png`, ….

    Returns:
        The files, in the order of the report.

    Raises:
        ResultsError: A file cannot be written.
    """
    from deltaw.reports import figures

    return figures.write_figures(analysis, folder)
