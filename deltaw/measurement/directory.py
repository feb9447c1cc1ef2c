"""The output directory: whose results are in it, and who is writing to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from deltaw.documents import Document, read_object
from deltaw.errors import ResultsError
from deltaw.measurement.journal import NAME, Journal, digest, inputs_of
from deltaw.measurement.options import Options
from deltaw.results.about import source
from deltaw.results.analysis import SCHEMA_VERSION
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
) -> Journal:
    """Lock a directory for one run and open its journal.

    Args:
        out: The directory.
        sources: What was opened.
        configs: Their configs, which decide how tensors are laid out and which of them are tied.
        options: Of the run.
        resume, force: See `analyze`.

    Raises:
        ResultsError: It holds results of other inputs (without `force`), is being written to, or cannot be written.
    """
    inputs = _names(*sources)
    if out.exists() and not out.is_dir():
        raise ResultsError(f"{out}: is a file; expected a directory for the results, choose another --out")
    if not force:
        _refuse_others(out, inputs)
    files = [[str(file) for file in side.files] for side in sources if side is not None]
    identity = digest(
        SCHEMA_VERSION, version("deltaw"), inputs, files, [config.values for config in configs], options.numbers()
    )
    # Tensors in memory have no files: nothing says that they are still what they were.
    return Journal(out, identity, inputs=inputs, resume=resume and all(files))


def _names(base: Source | None, ft: Source | None) -> dict[str, Sequence[str]]:
    return {"base": [] if base is None else base.names, "ft": [] if ft is None else ft.names}


def _inputs_of(path: Path) -> dict[str, Sequence[str]]:
    about = read_object(path, error=ResultsError)
    return _names(source(about.inner("base")), source(about.inner("ft")))


def _refuse_others(out: Path, inputs: Mapping[str, Sequence[str]]) -> None:
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
            raise ResultsError(
                f"{out}: holds results of other inputs ({Path(where).name} in {where}); choose another --out, or "
                "--force to overwrite them"
            )
    if found is None and any((out / f"layers.{suffix}").exists() for suffix in ("csv", "parquet", "json")):
        raise ResultsError(f"{out}: holds a layers table that is not deltaw's; choose another --out, or --force")
