"""`deltaw extract`: a fine-tune as a PEFT adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deltaw.cli.adapter import tell
from deltaw.cli.interrupt import keeps
from deltaw.cli.options import FilePath, choosing, executing, matching_names, verbosity


@click.command("extract")
@click.argument("base")
@click.argument("ft")
@click.option("--out", type=FilePath(), required=True, help="Where the adapter goes.")
@choosing
@click.option(
    "--save-modules",
    type=click.Choice(["auto", "none"]),
    default="auto",
    show_default=True,
    help="What no pair can hold (norms, biases, resized vocabularies): stored whole, or left out.",
)
@matching_names
@executing
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, nothing else.")
@verbosity
def command(base: str, ft: str, out: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Write what fine-tuning changed between BASE and FT as a PEFT LoRA, with a certificate of what it keeps.

    FT may be a full checkpoint or an adapter of any method. Give exactly one of --rank, --energy, --above-noise and
    --parameters. Writes adapter_config.json, adapter_model.safetensors, extraction.csv and README.md to --out.
    """
    import deltaw
    from deltaw.cli.progress import reporting

    keeps(f"What is finished is kept in {out}")
    with reporting(quiet=quiet) as progress:
        found = deltaw.extract(base, ft, out, picture=True, progress=progress.extracted, **options)
    tell(found, out, as_json=as_json, quiet=quiet)
