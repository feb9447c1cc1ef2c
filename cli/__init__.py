"""The command line: parse, call, show progress, turn errors into one line and an exit code. No numerics here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deltaw.cli.interrupt import install

if TYPE_CHECKING:
    from deltaw.cli.program import main as main

__all__ = ["main", "run"]


def run() -> None:
    """The program `deltaw`: signals are ours before anything that takes time is imported."""
    install()
    from deltaw.cli.program import main

    main(prog_name="deltaw")


def __getattr__(name: str) -> Any:
    if name != "main":
        raise AttributeError(f"module 'deltaw.cli' has no attribute {name!r}")
    from deltaw.cli.program import main

    return main
