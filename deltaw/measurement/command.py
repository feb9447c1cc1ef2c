"""The command that repeats an analysis, from what was opened and the options that are not the default."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from deltaw.measurement.options import Options


def command(base: Mapping[str, Any], ft: Mapping[str, Any], options: Options) -> str:
    """`deltaw analyze BASE FT …`; empty where a side was given in memory, which no command can repeat.

    Args:
        base, ft: What `describe` says of both sides; the base is empty for an adapter alone.
        options: Of the analysis.
    """
    if not all(side.get("identity") for side in (base, ft) if side):
        return ""
    sides = [_named(base), _named(ft)] if base else ["--no-base", _named(ft)]
    return shlex.join(["deltaw", "analyze", *sides, *_flags(options)])


def _named(side: Mapping[str, Any]) -> str:
    """The path, or the Hub id at the revision that was read."""
    path, revision = str(side["path"]), side.get("revision")
    return f"{path.partition('@')[0]}@{revision}" if revision else path


def _flags(options: Options) -> list[str]:
    out: list[str] = []
    for f in fields(options):
        value, flag = getattr(options, f.name), f"--{f.name.replace('_', '-')}"
        if value == f.default:
            continue
        if isinstance(value, bool):
            out.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, tuple):
            out += [part for v in value for part in (flag, v)]
        else:
            out += [flag, str(value)]
    return out
