"""`deltaw resize`: a LoRA at other ranks, or several as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deltaw.cli.adapter import tell
from deltaw.cli.interrupt import keeps
from deltaw.cli.options import FilePath, NumberList, choosing, executing, verbosity


@click.command("resize")
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER...")
@click.option("--out", type=FilePath(), required=True, help="Where the adapter goes.")
@click.option(
    "--weights", type=NumberList(), metavar="X,X,…", help="A weight for each adapter: .5,.5.  [default: 1 each]"
)
@choosing
@click.option(
    "--save-modules",
    type=click.Choice(["auto", "none"]),
    default="auto",
    show_default=True,
    help="What one adapter stores whole: kept, or left out.",
)
@click.option("--exclude", multiple=True, metavar="REGEX", help="Leave out weights whose name matches.")
@click.option("--include", multiple=True, metavar="REGEX", help="Only weights whose name matches.")
@executing
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, nothing else.")
@verbosity
def command(adapters: tuple[str, ...], out: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Write a LoRA at other ranks, or the weighted sum of several as one, from the factors alone: no base is needed.

    Give exactly one of --rank, --energy, --above-noise and --parameters.
    """
    import deltaw
    from deltaw.cli.progress import reporting

    keeps(f"What is finished is kept in {out}")
    with reporting(quiet=quiet) as progress:
        found = deltaw.resize(adapters, out, picture=True, progress=progress.extracted, **options)
    tell(found, out, as_json=as_json, quiet=quiet)
