"""Consoles for tables and sentences; rich is imported with this file, and so not for `--help`."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.style import Style
from rich.text import Text

from deltaw.cli.printable import printable

GLUE = "\N{NO-BREAK SPACE}"
WIDTH = 160  # characters, where stdout is no terminal


class Screen(Console):
    """A console that escapes whatever text is printed on it; its own colours and links are no text."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich's, of printable text."""
        return super().render_str(printable(text), **options)


def console() -> Screen:
    """Stdout; as wide as the terminal, and wide enough for long names where there is none."""
    return Screen(highlight=False) if sys.stdout.isatty() else Screen(highlight=False, width=WIDTH, no_color=True)


def bullet(screen: Console, sentence: str) -> None:
    """A sentence of a report, its lines below each other and broken between words: no number parts from its unit."""
    from deltaw.reports.text import unmarked

    wrap = textwrap.TextWrapper(
        screen.width, initial_indent="• ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    lines = wrap.fill(unmarked(sentence).replace(" %", f"{GLUE}%")).replace(GLUE, " ")
    screen.print(Text(printable(lines)), soft_wrap=True)


def file_link(path: Path) -> Text:
    """A path that a terminal opens when it is clicked; plain text anywhere else."""
    return Text(printable(str(path)), style=Style(link=path.resolve().as_uri()))
