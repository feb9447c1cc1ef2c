"""The command that repeats an analysis, from what was opened and the options that are not the default."""

from __future__ import annotations

import shlex

from deltaw.measurement.options import Options
from deltaw.results.shares import Share
from deltaw.results.sources import Source


def command(base: Source | None, ft: Source, options: Options, share: Share | None = None) -> str:
    """`deltaw analyze BASE FT …`; empty where a side was given in memory, which no command can repeat.

    Args:
        base, ft: What was opened; no base for an adapter alone.
        options: Of the analysis.
        share: Which share of it was measured.
    """
    if not all(side.files for side in (base, ft) if side is not None):
        return ""
    sides = ["--no-base" if base is None else base.argument, ft.argument]
    part = [] if share is None else ["--part", str(share)]
    return shlex.join(["deltaw", "analyze", *sides, *_flags(options), *part])


def _flags(options: Options) -> list[str]:
    default = Options().to_dict()
    out: list[str] = []
    for name, value in options.to_dict().items():
        flag = f"--{name.replace('_', '-')}"
        if value == default[name] or name == "activations_hash":  # known from the files
            continue
        if isinstance(value, bool):
            out.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, list):
            out += [part for v in value for part in (flag, str(v))]
        else:
            out += [flag, str(value)]
    return out
