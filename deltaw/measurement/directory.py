"""The output directory: whose results are in it, and who is writing to it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deltaw.errors import ResultsError
from deltaw.measurement.journal import NAME, Journal, digest
from deltaw.measurement.options import Options
from deltaw.results.analysis import SCHEMA_VERSION

# Decide how fast the numbers come, not what they are.
NOT_IN_NUMBERS = ("device", "cache")


def claim(
    out: Path,
    about: tuple[Mapping[str, Any], Mapping[str, Any]],
    configs: Sequence[Mapping[str, object]],
    options: Options,
    *,
    resume: bool,
    force: bool,
) -> Journal:
    """Lock a directory for one run and open its journal.

    Args:
        out: The directory.
        about: What `describe` says of both sides.
        configs: Their configs, which decide how tensors are laid out and which of them are tied.
        options: Of the run.
        resume, force: See `analyze`.

    Raises:
        ResultsError: It holds results of other inputs (without `force`), is being written to, or cannot be written.
    """
    base, ft = (inputs(side) for side in about)
    if out.exists() and not out.is_dir():
        raise ResultsError(f"{out}: is a file; expected a directory for the results, choose another --out")
    if not force:
        _refuse_others(out, base, ft)
    numbers = {k: v for k, v in options.to_dict().items() if k not in NOT_IN_NUMBERS}
    known = [side.get("identity") for side in about if side]
    identity = digest(SCHEMA_VERSION, version("deltaw"), base, ft, known, [*configs], numbers)
    # Tensors in memory have no identity: nothing says that they are still what they were.
    return Journal(out, identity, inputs=[base, ft], resume=resume and all(known))


def inputs(side: Mapping[str, Any]) -> list[str]:
    """What one side was, whatever its files hold by now: the paths of its files, or the Hub id."""
    files = sorted({name.rsplit(":", 2)[0] for name in side.get("identity") or ()})
    return [str(side["revision"])] if side.get("revision") else files or [str(side.get("path", ""))]


def _refuse_others(out: Path, base: list[str], ft: list[str]) -> None:
    found: list[list[str]] | None = None
    for name in ("analysis.json", NAME):
        path = out / name
        if not path.is_file():
            continue
        try:
            with path.open(encoding="utf-8") as file:
                about = json.loads(file.read() if name != NAME else file.readline())
            found = about["inputs"] if name == NAME else [inputs(about["base"]), inputs(about["ft"])]
        except (OSError, ValueError, KeyError, TypeError):
            found = [["unreadable"], ["unreadable"]]
        if found != [base, ft]:
            what = Path(found[1][0]).name if found[1] else "other inputs"
            raise ResultsError(
                f"{out}: holds results of other inputs ({what} in {found[1][0]}); choose another --out, or --force "
                "to overwrite them"
            )
    if found is None and any((out / f"layers.{suffix}").exists() for suffix in ("csv", "parquet", "json")):
        raise ResultsError(f"{out}: holds a layers table that is not deltaw's; choose another --out, or --force")
