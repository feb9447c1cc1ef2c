"""The command line: parse, call, show progress, turn errors into one line and an exit code. No numerics here."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltaw.cli.interrupt import install

if TYPE_CHECKING:
    from deltaw.cli.program import main as main

__all__ = ["main", "run"]


def run() -> None:
    """The program `deltaw`: signals are ours before anything that takes time is imported."""
    install()
    _make_writable()
    from deltaw.cli.program import main

    main(prog_name="deltaw")


def _make_writable() -> None:
    """Let every text be printed: on a closed stream nowhere, in a narrow encoding with escapes."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  (open to the end)
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def __getattr__(name: str) -> Any:
    if name != "main":
        raise AttributeError(f"module 'deltaw.cli' has no attribute {name!r}")
    from deltaw.cli.program import main

    return main
