"""`deltaw report`: render the report of saved results again, or print it in another form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from deltaw.cli.options import FilePath, verbosity
from deltaw.cli.printable import say

FORMS = ("markdown", "latex", "card")


@click.command("report")
@click.argument("results", type=FilePath(), metavar="RESULT_DIR")
@click.option("--out", type=FilePath(), help="The HTML file.  [default: report.html in RESULT_DIR]")
@click.option("--figures/--no-figures", default=True, show_default=True, help="Also write figures/ (SVG, PDF, PNG).")
@click.option("--markdown", is_flag=True, help="Print the sentences and the table as Markdown instead.")
@click.option("--latex", is_flag=True, help="Print the table for a paper instead (booktabs).")
@click.option("--card", is_flag=True, help="Print a model card for the Hugging Face Hub instead.")
@verbosity
def command(results: Path, out: Path | None, figures: bool, quiet: bool, **forms: bool) -> None:
    """Render the report of RESULT_DIR again, without measuring anything: what analyze, compare or survey wrote.

    With --markdown, --latex or --card (of an analysis; the first two of a comparison, too) nothing is written: the text
    goes to stdout.
    """  # noqa: DOC501  (a help text)
    asked = [form for form in FORMS if forms[form]]
    if len(asked) > 1:
        raise click.UsageError(f"--{asked[0]} and --{asked[1]}: give one of them")
    form = asked[0] if asked else ""
    printed, report, write = _read(results, form)
    if form:
        text = printed()
        say(text, end="")
        if form == "card" and not quiet:
            _say_of_its_figure(text, results)
        return
    path = report(out or results / "report.html")
    if figures:
        write(path.parent / "figures")
    if not quiet:
        from deltaw.cli.screen import console, file_link

        console().print(file_link(path), soft_wrap=True)


def _say_of_its_figure(card: str, results: Path) -> None:
    from deltaw.reports.exports import FIGURE

    if FIGURE in card and not (results / FIGURE).exists():
        say(
            f"note: the card shows {FIGURE}, which {results} does not have: deltaw report {results} writes it", err=True
        )


def _read(results: Path, form: str) -> Actions:
    """What can be done with the results of a directory.

    Raises:
        UsageError: They cannot be printed in this form.
    """
    if not (results / "analysis.json").exists():
        if (results / "comparison.json").exists():
            if form == "card":
                raise click.UsageError(f"--card: {results} holds a comparison, which has no model card; try --markdown")
            return _comparison(results, form)
        if (results / "survey.json").exists():
            if form:
                raise click.UsageError(f"--{form}: {results} holds a survey, which is not printed; its tables are CSV")
            return _survey(results)
    return _analysis(results, form)


Actions = tuple[Callable[[], str], Callable[[Path], Path], Callable[[Path], object]]  # print a form, report, figures


def _analysis(results: Path, form: str) -> Actions:
    import deltaw
    from deltaw.reports import exports, write_figures

    analysis = deltaw.load(results)
    return lambda: getattr(exports, form)(analysis), analysis.report, lambda folder: write_figures(analysis, folder)


def _comparison(results: Path, form: str) -> Actions:
    from deltaw.comparison import Comparison
    from deltaw.reports import comparison_exports
    from deltaw.reports.comparison import write_figures

    found = Comparison.load(results)
    return lambda: getattr(comparison_exports, form)(found), found.report, lambda folder: write_figures(found, folder)


def _survey(results: Path) -> Actions:
    from deltaw.reports.survey import write_figures
    from deltaw.surveys import Survey

    found = Survey.load(results)
    return str, found.report, lambda folder: write_figures(found, folder)
