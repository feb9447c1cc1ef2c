"""Tensors that failed: listed one by one, and told by the exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deltaw.cli.printable import say

if TYPE_CHECKING:
    from deltaw.types import Skipped

SOME_FAILED = 3


def list_failed(failed: Sequence[Skipped]) -> None:
    """A line on stderr for each."""
    for s in failed:
        say(f"failed: {s.name}: {s.subject}", err=True)


def end(failed: Sequence[Skipped]) -> None:
    """List them, and exit with their code where there are any."""
    list_failed(failed)
    if failed:
        sys.exit(SOME_FAILED)
