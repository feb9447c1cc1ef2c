"""What `extract` and `resize` have in common: an adapter that was written, told and listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deltaw.cli.failures import end
from deltaw.cli.printable import say

if TYPE_CHECKING:
    from deltaw.edits.extracted import Extraction


def tell(found: Extraction, out: Path, *, as_json: bool, quiet: bool) -> None:
    """The certificate as JSON or in sentences, and what failed."""
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1, allow_nan=False))
    elif not quiet:
        for line in found.sentences():
            say(line)
        say(f"Written to {out}")
        if found.curve is not None:
            far = "" if found.curve.whole else ", as far as its directions were looked for"
            say(f"energy.svg there shows what more or fewer numbers would keep{far}")
    end(found.failed)
