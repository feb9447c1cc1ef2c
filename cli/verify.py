"""`deltaw verify`: is the merged checkpoint the base plus the adapter?"""

from __future__ import annotations

import json

import click

from deltaw.cli.options import verbosity
from deltaw.cli.printable import say


@click.command("verify")
@click.argument("base")
@click.argument("adapter")
@click.argument("merged")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@verbosity
def command(base: str, adapter: str, merged: str, as_json: bool, quiet: bool) -> None:
    """Check every tensor of MERGED against BASE plus ADAPTER.

    One line for each tensor that is not equal, then a summary. Exit code 0 if all are equal up to the rounding of
    their storage, 4 if one differs or is missing.
    """  # noqa: DOC501  (click's Exit is the exit code)
    from deltaw.cli.progress import reporting
    from deltaw.verification import verify

    with reporting(quiet=quiet) as progress:
        found = verify(base, adapter, merged, progress=progress.verified)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1))
    else:
        for line in found.lines()[: -1 if quiet else None]:
            say(line)
    if not found.passed:
        raise click.exceptions.Exit(4)
