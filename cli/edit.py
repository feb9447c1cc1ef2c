"""`deltaw edit`: the fine-tune with a part of its update taken out or scaled."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from deltaw.cli.failures import SOME_FAILED
from deltaw.cli.interrupt import keeps
from deltaw.cli.options import FilePath, executing, verbosity
from deltaw.cli.printable import say


@click.command("edit")
@click.argument("base")
@click.argument("ft")
@click.option("--out", type=FilePath(), required=True, help="Where the checkpoint goes.")
@click.option("--drop", multiple=True, metavar="REGEX", help="Set matching tensors back to the base's.")
@click.option("--without-decay", is_flag=True, help="Take out the common weight decay.")
@click.option("--denoise", is_flag=True, help="Keep only directions above the noise edge.")
@click.option("--keep-rank", type=click.IntRange(min=1), help="Keep only so many directions of each matrix.")
@click.option("--rescale", is_flag=True, help="With --keep-rank: scale what is kept to the update's norm.")
@click.option("--without-intruders", is_flag=True, help="Take out the intruder dimensions.")
@click.option(
    "--strength",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="With --without-intruders: the share of them that stays.",
)
@click.option("--scale", type=float, metavar="X", help="Multiply what is left of the update by X.")
@executing
@verbosity
def command(base: str, ft: str, out: Path, quiet: bool, **options: Any) -> None:
    """Write FT with a part of its update over BASE taken out or scaled: a checkpoint in FT's own layout.

    Operations apply in the order of the options above. Writes the checkpoint with its config and tokenizer files, and
    edit.csv, to --out.
    """
    import deltaw
    from deltaw.cli.progress import reporting

    keeps(f"What is finished is kept in {out}")
    with reporting(quiet=quiet) as progress:
        found = deltaw.edit(base, ft, out, progress=progress.extracted, **options)
    if not quiet:
        for line in found.sentences():
            say(line)
        say(f"Written to {out}")
    for s in found.skipped:
        say(f"left as fine-tuned: {s.name}: {s.reason}", err=True)
    if found.failed:
        sys.exit(SOME_FAILED)
