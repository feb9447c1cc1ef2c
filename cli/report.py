"""`deltaw report`: render the report of saved results again."""

from __future__ import annotations

from pathlib import Path

import click

from deltaw.cli.options import verbosity
from deltaw.cli.printable import say


@click.command("report")
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The HTML file.  [default: report.html in RESULT_DIR]")
@click.option("--figures/--no-figures", default=True, show_default=True, help="Also write figures/*.svg and *.png.")
@verbosity
def command(results: Path, out: Path | None, figures: bool, quiet: bool) -> None:
    """Render the report of RESULT_DIR again, without measuring anything."""
    import deltaw
    from deltaw.reports import write_figures

    analysis = deltaw.load(results)
    path = analysis.report(out or results / "report.html")
    if figures:
        write_figures(analysis, path.parent / "figures")
    if not quiet:
        say(str(path))
