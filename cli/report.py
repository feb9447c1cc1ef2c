"""`deltaw report`: render the report of saved results again, or print it in another form."""

from __future__ import annotations

from pathlib import Path

import click

from deltaw.cli.options import FilePath, verbosity

FORMS = ("markdown", "latex", "card")


@click.command("report")
@click.argument("results", type=FilePath())
@click.option("--out", type=FilePath(), help="The HTML file.  [default: report.html in RESULT_DIR]")
@click.option("--figures/--no-figures", default=True, show_default=True, help="Also write figures/ (SVG, PDF, PNG).")
@click.option("--markdown", is_flag=True, help="Print the sentences and the table as Markdown instead.")
@click.option("--latex", is_flag=True, help="Print the table for a paper instead (booktabs).")
@click.option("--card", is_flag=True, help="Print a model card for the Hugging Face Hub instead.")
@verbosity
def command(results: Path, out: Path | None, figures: bool, quiet: bool, **forms: bool) -> None:
    """Render the report of RESULT_DIR again, without measuring anything.

    With --markdown, --latex or --card nothing is written: the text goes to stdout.
    """  # noqa: DOC501  (a help text)
    import deltaw

    asked = [form for form in FORMS if forms[form]]
    if len(asked) > 1:
        raise click.UsageError(f"--{asked[0]} and --{asked[1]}: give one of them")
    analysis = deltaw.load(results)
    if asked:
        from deltaw.reports import exports

        click.echo(getattr(exports, asked[0])(analysis), nl=False)
        return
    from deltaw.reports import write_figures

    path = analysis.report(out or results / "report.html")
    if figures:
        write_figures(analysis, path.parent / "figures")
    if not quiet:
        from deltaw.cli.screen import console, file_link

        console().print(file_link(path), soft_wrap=True)
