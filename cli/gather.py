"""`deltaw gather`: the parts of one analysis as one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from deltaw.cli.analyze import document, write_report
from deltaw.cli.failures import SOME_FAILED, list_failed
from deltaw.cli.options import FilePath, Names, verbosity


@click.command("gather")
@click.argument("parts", nargs=-1, required=True, type=FilePath(), metavar="PART_DIR...")
@click.option("--out", type=FilePath(), required=True, help="Where the whole goes.")
@click.option(
    "--format",
    "formats",
    type=Names(("csv", "parquet", "json")),
    default="csv,parquet",
    show_default=True,
    help="Tables to write.",
)
@click.option("--no-report", is_flag=True, help="Tables only.")
@click.option("--force", is_flag=True, help="Overwrite results of other inputs in --out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, nothing else.")
@verbosity
def command(
    parts: tuple[Path, ...],
    out: Path,
    formats: tuple[str, ...],
    no_report: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Join the parts of one analysis, which analyze --part I/N wrote, into what one run would have given.

    The parts may be given in any order. Together they must be one whole analysis: a part that is missing, given twice,
    or made from other inputs or options is named.
    """
    import deltaw
    from deltaw.cli.progress import reporting

    with reporting(quiet=quiet) as progress:
        progress.say(f"joining {len(parts)} {'part' if len(parts) == 1 else 'parts'}")
        analysis = deltaw.gather(parts, out=out, formats=formats, force=force)
        if not no_report:
            progress.say("writing the report")
            write_report(analysis, out)
    if as_json:
        click.echo(json.dumps(document(analysis, out, ()), indent=1, allow_nan=False))
    elif not quiet:
        from deltaw.cli.summary import show

        show(analysis, out, report=not no_report)
    list_failed(analysis.failed)
    if analysis.failed:
        sys.exit(SOME_FAILED)
