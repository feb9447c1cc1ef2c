"""`deltaw activations`: what the inputs of every matrix are on a data set."""

from __future__ import annotations

from pathlib import Path

import click

from deltaw.cli.options import FilePath, verbosity
from deltaw.cli.printable import say

LISTED = 5  # matrices of which no inputs were seen


def _without_bars() -> None:
    """Without transformers' own progress bars: this command has one."""
    from importlib.util import find_spec

    if find_spec("transformers") is not None:
        from transformers.utils import logging

        logging.disable_progress_bar()


@click.command("activations")
@click.argument("model")
@click.option("--text", multiple=True, required=True, metavar="FILES", help="Text files, folders or patterns.")
@click.argument("more", nargs=-1, metavar="[FILES]...")
@click.option("--out", type=FilePath(), required=True, help="The file to write.")
@click.option(
    "--tokens", type=click.IntRange(min=1), default=65_536, show_default=True, help="Read at most this many tokens."
)
@click.option("--length", type=click.IntRange(min=1), help="Tokens in a block.  [default: 512, if the model can]")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Blocks at a time.")
@click.option("--include", multiple=True, metavar="REGEX", help="Only matrices whose name matches.")
@click.option("--exclude", multiple=True, metavar="REGEX", help="Leave out matrices whose name matches.")
@click.option(
    "--sketch-above",
    type=click.IntRange(min=0),
    default=8192,
    show_default=True,
    help="Keep inputs with more entries than this as a sketch with a proven error.",
)
@click.option(
    "--sketch-rows", type=click.IntRange(min=1), default=512, show_default=True, help="Directions that a sketch keeps."
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda[:N]|mps",
    help="Where the model runs.",
)
@click.option("--force", is_flag=True, help="Overwrite activations that are there.")
@verbosity
def command(
    model: str,
    text: tuple[str, ...],
    more: tuple[str, ...],
    out: Path,
    tokens: int,
    length: int | None,
    batch: int,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    sketch_above: int,
    sketch_rows: int,
    device: str,
    force: bool,
    quiet: bool,
) -> None:
    """Run MODEL over text, and write the second moments of every matrix's inputs to --out.

    MODEL is a transformers model with its tokenizer, a directory or a Hub id: the base whose fine-tunes are to be
    measured. `deltaw analyze --activations` then tells what an update does to these inputs. In Python,
    deltaw.collect_activations takes any model and any data.
    """  # noqa: DOC501  (a help text)
    from deltaw.activations.text import collect_from_text
    from deltaw.cli.progress import reporting
    from deltaw.errors import ActivationsError
    from deltaw.measurement.options import resolve_devices

    if out.exists() and not force:
        raise ActivationsError(f"{out}: exists already; choose another --out, or --force to overwrite it")
    _without_bars()
    with reporting(quiet=quiet) as progress:
        progress.say("loading the model")
        found = collect_from_text(
            model,
            [*text, *more],
            out,
            tokens=tokens,
            length=length,
            batch=batch,
            device=resolve_devices(device)[0],
            include=include,
            exclude=exclude,
            sketch_above=sketch_above,
            sketch_rows=sketch_rows,
            progress=progress.collected,
        )
    if quiet:
        return
    from deltaw.types import counted

    sketches = sum(m.form == "sketch" for m in found.matrices.values())
    kept = f", {sketches:,} of them as sketches" if sketches else ""
    say(f"The inputs of {counted(len(found.matrices), 'matrix', 'matrices')}{kept} on {found.inputs}: {out}")
    if found.unseen:
        rest = f" and {len(found.unseen) - LISTED:,} more" if len(found.unseen) > LISTED else ""
        say(f"No inputs were seen of {', '.join(found.unseen[:LISTED])}{rest}")
