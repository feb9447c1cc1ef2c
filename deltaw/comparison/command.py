"""The command that repeats a comparison."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltaw.measurement.options import AnalyzeOptions


def command(runs: object, reference: str | None, seed: int, options: AnalyzeOptions) -> str:
    """`deltaw compare MANIFEST.toml …`; empty where analyses were given in memory, which no command can repeat.

    Args:
        runs: As `deltaw.compare` takes them.
        reference: The group that was asked for.
        seed: Of the bootstrap.
        options: Of the analyses, as far as they were given.
    """
    given = [runs] if isinstance(runs, (str, os.PathLike)) else runs
    if not isinstance(given, Sequence) or not all(isinstance(r, (str, os.PathLike)) for r in given):
        return ""
    out = ["deltaw", "compare", *map(str, given)]
    out += ["--reference", reference] if reference is not None else []
    out += ["--seed", str(seed)] if seed else []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            out.append(flag)
        elif isinstance(value, (list, tuple)):
            out += [part for v in value for part in (flag, str(v))]
        elif value is not None and value is not False:
            out += [flag, str(value)]
    return shlex.join(out)
