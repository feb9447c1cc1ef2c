"""Analyses of runs: reused where inputs and options are the same by content, computed otherwise.

The key of an analysis is a hash of the bytes of the files that would be read (both sides), and of the options that
decide the numbers: a checkpoint that was copied or touched is still the same, one that was overwritten is not. Files
are hashed once; their digests are kept beside the analyses, by path, size and time.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from deltaw.comparison.manifest import RunSpec
from deltaw.documents import read_object
from deltaw.errors import DeltaWError, ManifestError, ResultsError
from deltaw.files import refuse_link, replacing
from deltaw.measurement.inspection import Inspection
from deltaw.measurement.options import SPEED_ONLY, AnalyzeOptions, open_data, selected
from deltaw.results.about import texts
from deltaw.results.analysis import Analysis
from deltaw.results.sources import Source

KEY = "inputs.json"
DIGESTS = "digests.json"
SIDECARS = ("config.json", "adapter_config.json")


def inspect_all(specs: Sequence[RunSpec], base: Any, options: AnalyzeOptions) -> dict[str, Inspection]:
    """Open every checkpoint and pair it with the base, reading headers only: what is wrong shows before work starts.

    Returns:
        `deltaw.measurement.inspection.Inspection` by run.

    Raises:
        ManifestError: With one line per run that cannot be used.
    """
    found: dict[str, Inspection] = {}
    problems = []
    for spec in specs:
        try:
            found[spec.name] = Inspection.of(base, spec.checkpoint, selected(options))
        except DeltaWError as e:
            problems.append(f"{spec.where}: run {spec.name!r}: {e}")
    problems.extend(_other_bases(specs, found))
    if problems:
        raise ManifestError("\n".join(problems))
    return found


def _other_bases(specs: Sequence[RunSpec], found: Mapping[str, Inspection]) -> list[str]:
    """Adapters that say they belong to different Hub models (paths may differ and mean the same)."""
    from deltaw.checkpoints.hub import looks_like_id

    named: dict[str, RunSpec] = {}
    for spec in specs:
        if spec.name not in found or spec.checkpoint is None:
            continue
        try:
            base = read_object(Path(spec.checkpoint) / "adapter_config.json").text("base_model_name_or_path")
        except DeltaWError:
            continue  # no adapter, or one in a single file
        if looks_like_id(base) and not Path(base).exists():
            named.setdefault(base, spec)
    if len(named) < 2:
        return []
    (a, x), (b, y) = list(named.items())[:2]
    return [
        f"{y.where}: run {y.name!r} is an adapter of {b}, run {x.name!r} of {a}; compare runs of one base only "
        "(if they are the same model, make base_model_name_or_path equal in their adapter_config.json)"
    ]


def folder_name(run: str) -> str:
    """A directory name for a run: readable, safe and unique."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", run).strip("-.")[:60]
    return f"{readable or 'run'}-{hashlib.sha256(run.encode()).hexdigest()[:8]}"


def content_key(inspection: Inspection, options: AnalyzeOptions, digests: Digests) -> str | None:
    """The key of an analysis; None where an input is not made of files (a model in memory)."""
    sides = []
    for side in (inspection.base, inspection.ft):
        contents = digests.of(side)
        if contents is None:
            return None
        sides.append(contents)
    numbers = {k: v for k, v in options.items() if k not in SPEED_ONLY}
    numbers |= {"data": [inputs.activations.hash for inputs in open_data(options.get("activations", ()))]}
    return hashlib.sha256(json.dumps([sides, numbers], sort_keys=True, default=str).encode()).hexdigest()


class Digests:
    """Hashes of files, kept in a JSON file between runs.

    Args:
        path: The file; None to keep nothing.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.known: dict[str, str] = {}
        if path is not None and path.is_file():
            with suppress(ResultsError):  # only a cache
                self.known = texts(read_object(path, error=ResultsError))

    def of(self, side: Source | None) -> list[str] | None:
        """The digests of one side's files, or None if it has none."""
        stamps = set(side.files) if side is not None else set()
        elsewhere = [f"{s.path}:{s.size}:{s.etag}" for s in stamps if s.pinned]
        paths = [p for s in sorted(stamps) if not s.pinned and (p := Path(s.path)).is_file()]
        if not paths and not elsewhere:
            return None
        for folder in sorted({p.parent for p in paths}):
            paths.extend(p for name in SIDECARS if (p := folder / name).is_file() and p not in paths)
        return sorted([*elsewhere, *(f"{p.name}:{self._digest(p)}" for p in paths)])

    def _digest(self, path: Path) -> str:
        stat = path.stat()
        name = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        if name not in self.known:
            with path.open("rb") as file:
                self.known[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return self.known[name]

    def save(self) -> None:
        """Keep what is known.

        Raises:
            ResultsError: The file cannot be written.
        """
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps(self.known, indent=1) + "\n", encoding="utf-8")
        except OSError as e:
            raise ResultsError(f"{self.path}: cannot be written ({e.strerror or e}); choose another --out") from e


def stored_key(folder: Path) -> str | None:
    """The key under which a directory's analysis was computed, if it is complete."""
    with suppress(ResultsError):  # not there, or cut off: compute again
        if (folder / "analysis.json").is_file():
            return read_object(folder / KEY, error=ResultsError).text("key") or None
    return None


def store_key(folder: Path, key: str) -> None:
    """Say what a directory's analysis was computed from.

    Raises:
        OSError: The file cannot be written.
    """
    with replacing(folder / KEY) as temporary:
        temporary.write_text(json.dumps({"key": key}) + "\n", encoding="utf-8")


def analyses(
    specs: Sequence[RunSpec],
    base: str,
    folder: Path | None,
    options: AnalyzeOptions,
    report: Callable[[str, int, int], Callable[[Any], None] | None],
) -> dict[str, Analysis | Path]:
    """The analysis of each run: a directory if there is a place to keep it, else in memory.

    Args:
        specs: Runs with a checkpoint.
        base: Path or Hub id.
        folder: Where analyses are kept.
        options: Of `deltaw.analyze`.
        report: Called with (run, index, count) before each analysis; returns its progress callback.

    Raises:
        DeltaWError: A run cannot be used, or the results cannot be written.
    """
    from deltaw.checkpoints import open_checkpoint
    from deltaw.measurement.run import analyze

    opened = open_checkpoint(base)
    inspections = inspect_all(specs, opened, options)
    digests = Digests(folder / DIGESTS if folder else None)
    for own in [folder, *(folder / folder_name(spec.name) for spec in specs)] if folder else []:
        refuse_link(own)
    out: dict[str, Analysis | Path] = {}
    for i, spec in enumerate(specs):
        place = folder / folder_name(spec.name) if folder else None
        key = content_key(inspections[spec.name], options, digests) if place else None
        if place is not None and key is not None and stored_key(place) == key:
            out[spec.name] = place
            continue
        progress = report(spec.name, i, len(specs))
        # `force`: this folder is ours, and what is in it is of other inputs or options.
        analysis = analyze(opened, spec.checkpoint, out=place, force=True, progress=progress, **options)
        if place is not None and key is not None:
            store_key(place, key)
        out[spec.name] = analysis if place is None else place
        digests.save()
    return out
