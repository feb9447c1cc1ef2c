"""The command line: parse, call, show progress, turn errors into one line and an exit code. No numerics here."""

from __future__ import annotations

from deltaw.cli.main import main

__all__ = ["main"]
