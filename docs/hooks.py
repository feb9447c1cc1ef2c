"""What the documentation site writes when it is built: the help of every command, and every public name."""

from __future__ import annotations

import importlib
import re
from types import ModuleType

import click

from deltaw.cli.program import COMMANDS, main

PLACE = re.compile(r"<!-- (commands|names of) ?([\w.]*): written by docs/hooks.py -->")
WIDTH = 100


def commands() -> str:
    """One section for each command: what `--help` prints."""
    parent = click.Context(main, info_name="deltaw")
    parts = []
    for name in COMMANDS:
        command = main.get_command(parent, name)
        assert command is not None
        with click.Context(command, parent, name, max_content_width=WIDTH, terminal_width=WIDTH) as ctx:
            parts.append(f"## deltaw {name}\n\n```text\n{command.get_help(ctx)}\n```\n")
    return "\n".join(parts)


def names(package: str) -> str:
    """One entry for each function and class that a package exports; mkdocstrings fills it from the docstring."""
    exported = importlib.import_module(package)
    entries = [name for name in exported.__all__ if not isinstance(getattr(exported, name), ModuleType)]
    return "\n".join(f"::: {package}.{name}\n" for name in entries)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by mkdocs for every page."""
    return PLACE.sub(lambda m: names(m[2]) if m[2] else commands(), markdown)
