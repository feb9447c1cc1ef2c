"""The command that repeats a survey."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from deltaw.pairs.selection import Selection

MOST = 20  # adapters that are written out


def command(base: object, given: Sequence[str | Path], selection: Selection, merge: Sequence[str], mark: str) -> str:
    """`deltaw survey BASE ADAPTER… `; empty where the base was given in memory, which no command can repeat.

    More than 20 adapters stand for a list, `@adapters.txt`, which the reader has to have.
    """
    if not isinstance(base, (str, Path)) and base is not None:
        return ""
    adapters = [str(g) for g in given] if len(given) <= MOST else ["@adapters.txt"]
    out = ["deltaw", "survey", "--no-base" if base is None else str(base), *adapters]
    for flag, patterns in (("--include", selection.include), ("--exclude", selection.exclude)):
        out += [part for p in patterns for part in (flag, p)]
    out += ["--merge-check", ",".join(merge)] if merge else []
    out += ["--mark", mark] if mark else []
    return shlex.join(out)
