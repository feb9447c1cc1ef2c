"""What a terminal may be shown of a foreign text: names and paths come from files, and a terminal obeys what it reads.

Control characters (C0 and C1) and those that turn the direction of a text are shown as escapes, everywhere: `say` and
`deltaw.cli.screen` are the two ways by which a command prints.
"""

from __future__ import annotations

import unicodedata

import click

from deltaw.errors import LONGEST

KEPT = "\n\t"
HIDDEN = {"Cc", "Cs", "Zl", "Zp"}
TURNING = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
MARKS = "\u200e\u200f\u061c\ufeff"  # direction marks, and a byte order mark


def printable(text: str) -> str:
    r"""The text with every character that steers a terminal as its escape: `\x1b`, `\u202e`."""
    if text.isprintable():  # the common case, in C; what follows is never printable in this sense
        return text
    return "".join(_escape(c) if _steers(c) else c for c in text)


def one_line(text: str) -> str:
    """A message as one printable line of bounded length."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}… ({len(line) - LONGEST:,} more characters)"


def say(text: str, *, err: bool = False, end: str = "\n") -> None:
    """Print a text that may hold foreign ones."""
    click.echo(f"{printable(text)}{end}", err=err, nl=False)


def _steers(c: str) -> bool:
    if c in KEPT:
        return False
    return unicodedata.category(c) in HIDDEN or unicodedata.bidirectional(c) in TURNING or c in MARKS


def _escape(c: str) -> str:
    return c.encode("unicode_escape").decode()
