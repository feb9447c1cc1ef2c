"""Ctrl-C: one line and exit code 130, at once, whatever the command."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

INTERRUPTED = 130  # what a shell reports for Ctrl-C
KEEPS = "deltaw.keeps"


def keeps(what: str) -> None:
    """Say what the running command leaves when it is interrupted: a sentence without its full stop."""
    click.get_current_context().meta[KEEPS] = what


def end(ctx: click.Context) -> NoReturn:
    """Say what is kept and how to go on, and end the process."""
    kept = f"{what}; run" if (what := ctx.meta.get(KEEPS)) else "Run"
    try:
        click.echo(f"\nInterrupted. {kept} the same command again{' to go on' if what else ''}.", err=True)
        sys.stderr.flush()
    finally:  # also where a second Ctrl-C came, or stderr is closed
        os._exit(INTERRUPTED)  # at once: an SVD in another thread would be waited for, or abort the interpreter
