"""`deltaw verify`: is the merged checkpoint the base plus the adapter? Would the update survive quantisation?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from deltaw.cli.options import verbosity
from deltaw.cli.printable import say

if TYPE_CHECKING:
    from deltaw.verification import Prediction


FORMATS = ("int4-g32", "int4-g128", "nf4", "fp8", "mxfp4", "q4_0", "q8_0")  # `deltaw.tensors.quantisers`


@click.command("verify")
@click.argument("base")
@click.argument("adapter")
@click.argument("merged", required=False)
@click.option(
    "--predict",
    type=click.Choice(FORMATS),
    help="Without MERGED: what quantising the merge to this format would leave of the update.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@verbosity
def command(base: str, adapter: str, merged: str | None, predict: str | None, as_json: bool, quiet: bool) -> None:
    """Check every tensor of MERGED against BASE plus ADAPTER.

    One line for each tensor that is not equal, then a summary. Exit code 0 if all are equal up to the rounding of
    their storage, 4 if one differs or is missing. With --predict nothing is checked, and the exit code is 0.
    """  # noqa: DOC501  (click's Exit is the exit code)
    from deltaw.cli.progress import reporting
    from deltaw.verification import Verification, verify
    from deltaw.verification import predict as predicted

    if (merged is None) == (predict is None):
        raise click.UsageError("give either MERGED or --predict FORMAT")
    with reporting(quiet=quiet) as progress:
        if predict is not None:
            found: Prediction | Verification = predicted(base, adapter, predict, progress=progress.verified)
        else:
            found = verify(base, adapter, merged, progress=progress.verified)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1))
    else:
        for line in found.lines()[: -1 if quiet else None]:
            say(line)
    if isinstance(found, Verification) and not found.passed:
        raise click.exceptions.Exit(4)
