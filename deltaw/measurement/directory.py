"""The output directory: whose results are in it, and who is writing to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from deltaw.documents import Document, read_object
from deltaw.errors import ResultsError
from deltaw.measurement.journal import NAME, Journal, digest, inputs_of
from deltaw.measurement.options import Options
from deltaw.results import about
from deltaw.results.analysis import SCHEMA_VERSION
from deltaw.results.shares import Share
from deltaw.results.sources import Source

UNREADABLE = ("unreadable",)


def claim(
    out: Path,
    sources: tuple[Source | None, Source],
    configs: Sequence[Document],
    options: Options,
    *,
    resume: bool,
    force: bool,
    share: Share | None = None,
) -> Journal:
    """Lock a directory for one run and open its journal.

    Args:
        out: The directory.
        sources: What was opened.
        configs: Their configs, which decide how tensors are laid out and which of them are tied.
        options: Of the run.
        resume, force: See `analyze`.
        share: Which share of the analysis the run is.

    Raises:
        ResultsError: It holds results of other inputs (without `force`), is being written to, or cannot be written.
    """
    inputs = _names(*sources, share)
    if out.exists() and not out.is_dir():
        raise ResultsError(f"{out}: is a file; expected a directory for the results, choose another --out")
    if not force:
        _refuse(out, inputs)
    files = [[str(file) for file in side.files] for side in sources if side is not None]
    identity = digest(
        SCHEMA_VERSION, version("deltaw"), inputs, files, [config.values for config in configs], options.numbers()
    )
    # Tensors in memory have no files: nothing says that they are still what they were.
    return Journal(out, identity, inputs=inputs, resume=resume and all(files))


def refuse_others(out: Path, base: Source | None, ft: Source) -> None:
    """End where a directory holds results of other inputs.

    Raises:
        ResultsError: It does.
    """
    _refuse(out, _names(base, ft, None))


def _names(base: Source | None, ft: Source | None, share: Share | None) -> dict[str, Sequence[str]]:
    return {
        "base": [] if base is None else base.names,
        "ft": [] if ft is None else ft.names,
        "part": [] if share is None else [str(share)],
    }


def _inputs_of(path: Path) -> dict[str, Sequence[str]]:
    stored = read_object(path, error=ResultsError)
    base, ft = (about.source(stored.inner(side)) for side in ("base", "ft"))
    return _names(base, ft, about.share(stored.inner("share")))


def _refuse(out: Path, inputs: Mapping[str, Sequence[str]]) -> None:
    found: Mapping[str, Sequence[str]] | None = None
    for name in ("analysis.json", NAME):
        path = out / name
        if not path.is_file():
            continue
        try:
            found = inputs_of(path) if name == NAME else _inputs_of(path)
        except (ResultsError, OSError):
            found = None
        found = found or {}
        if any(list(found.get(side, UNREADABLE)) != list(names) for side, names in inputs.items()):
            where = next(iter(found.get("ft", UNREADABLE)), "")
            if all(list(found.get(side, UNREADABLE)) == list(inputs[side]) for side in ("base", "ft")):
                what = "".join(f"part {part} of" for part in found.get("part", ())) or "all of"
                raise ResultsError(f"{out}: holds {what} this analysis; choose another --out, or --force")
            raise ResultsError(
                f"{out}: holds results of other inputs ({Path(where).name} in {where}); choose another --out, or "
                "--force to overwrite them"
            )
    if found is None and any((out / f"layers.{suffix}").exists() for suffix in ("csv", "parquet", "json")):
        raise ResultsError(f"{out}: holds a layers table that is not deltaw's; choose another --out, or --force")
