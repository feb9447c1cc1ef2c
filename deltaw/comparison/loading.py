"""From what the user gives (a manifest, result directories, analyses in memory) to runs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw.comparison.manifest import Manifest, RunSpec, lone_groups
from deltaw.comparison.manifest.seeds import SEED
from deltaw.comparison.mean_spectra import mean_spectra
from deltaw.comparison.naming import own_keys
from deltaw.comparison.runs import Analysed, Run
from deltaw.documents import Document, is_score, read_object
from deltaw.errors import ManifestError, ResultsError
from deltaw.results import about
from deltaw.results.analysis import Analysis
from deltaw.results.spectra_file import read_spectra
from deltaw.results.tables import read_layers

if TYPE_CHECKING:
    import pandas as pd

Results = Analysis | str | Path  # of an analysis, in memory or in a directory


def from_mapping(named: Mapping[str, Results | Sequence[Results]]) -> tuple[Manifest, dict[str, Results]]:
    """A manifest of one group per name; a list of analyses is a group of replicates.

    Raises:
        ManifestError: A value is no analysis and no path, or there are none.
    """
    specs: list[RunSpec] = []
    sources: dict[str, Results] = {}
    for name, value in ((str(n), v) for n, v in named.items()):
        many = list(value) if isinstance(value, (list, tuple)) else [value]
        if not str(name).strip() or not many:
            raise ManifestError(f"{name!r}: expected a name with one Analysis, or a list of them (replicates)")
        for i, source in enumerate(many):
            if not isinstance(source, (Analysis, str, Path)):  # what Python callers may give
                raise ManifestError(
                    f"{name!r}: {type(source).__name__} is neither an Analysis nor a directory that analyze wrote; "
                    "expected what deltaw.analyze returns"
                )
            run = name if len(many) == 1 else f"{name} #{i + 1}"
            specs.append(RunSpec(run, name, seed=i if len(many) > 1 else None, where=repr(name)))
            sources[run] = source
    if not specs:
        raise ManifestError("no runs to compare; give a name and an analysis for each")
    return Manifest(specs, warnings=lone_groups(specs)), sources


def from_directories(paths: Sequence[str | Path]) -> tuple[Manifest, dict[str, Results]]:
    """A manifest of result directories, named by them; `x-s0` and `x-s1` are seeds of a group `x`.

    Raises:
        ManifestError: A directory is given twice, or has no results.
    """
    folders = [Path(p).absolute() for p in paths]
    names = [f.name for f in folders]
    if len(set(names)) < len(names):
        names = [f"{f.parent.name}/{f.name}" for f in folders]
    for folder, name in zip(folders, names, strict=True):
        if names.count(name) > 1:
            raise ManifestError(f"{folder}: given twice, or twice the name {name!r}; name the runs in a manifest")
        if not (folder / "analysis.json").is_file():
            raise ManifestError(f"{folder}: no analysis.json there; expected a manifest.toml or results of analyze")
    found = {n: SEED.match(n) for n in names}
    stems = [m["stem"] for m in found.values() if m]
    specs = []
    for name, folder in zip(names, folders, strict=True):
        m = found[name]
        if m and stems.count(m["stem"]) > 1:
            specs.append(RunSpec(name, m["stem"], seed=int(m["seed"]), where=str(folder)))
        else:
            specs.append(RunSpec(name, name, where=str(folder)))
    return Manifest(specs, warnings=lone_groups(specs)), dict(zip(names, folders, strict=True))


def read_run(spec: RunSpec, source: Results) -> Run:
    """A run whose weights were analysed: its table, where it comes from, and its mean spectra.

    The singular values themselves are not kept: sixty runs of them would fill the memory.

    Raises:
        ResultsError: The results cannot be read.
    """
    if isinstance(source, Analysis):
        known = Analysed(source.base, source.ft, source.options, source.summary.coverage.share)
        layers, spectra = source.to_pandas(), source.spectra
    else:
        folder = Path(source)
        known = analysed(read_object(folder / "analysis.json", error=ResultsError))
        layers, spectra = read_layers(folder), read_spectra(folder / "spectra.safetensors")
    layers = indexed(layers, spec.where)
    return Run(spec, infer_method(spec, layers), layers, known, mean_spectra(layers, spectra))


def analysed(stored: Document) -> Analysed:
    """What a saved analysis was of, from its `base`, `ft`, `options` and `summary.coverage`.

    Raises:
        ResultsError: A value is of another type.
    """
    base, ft = (about.source(stored.inner(side)) for side in ("base", "ft"))
    share = stored.inner("summary").inner("coverage").values.get("share")
    compared = float(share) if is_score(share) else math.nan
    return Analysed(base, ft, about.options(stored.inner("options")), compared)


def indexed(layers: pd.DataFrame, where: str) -> pd.DataFrame:
    """The table with `name[part]` as its index.

    Raises:
        ResultsError: The table lacks a column that identifies layers.
    """
    import pandas as pd

    missing = [c for c in ("name", "part", "kind", "module", "layer") if c not in layers.columns]
    if missing:
        raise ResultsError(f"{where}: its layers have no column {', '.join(missing)}; run analyze again")
    frame = layers.set_index(pd.Index(own_keys(layers), name="key"))
    return frame[~frame.index.duplicated()]


def infer_method(spec: RunSpec, layers: pd.DataFrame | None) -> str:
    """What the manifest says; else the adapter's type; else what the names of run and group say; else empty."""
    if spec.method:
        return spec.method
    if layers is not None and "adapter_type" in layers.columns:
        found = sorted({str(t) for t in layers["adapter_type"] if isinstance(t, str) and t})
        if found:
            return found[0]
    words = re.split(r"[^a-z]+", f"{spec.group} {spec.name}".lower())
    return next((m for m in ("mora", "dora", "lora", "full", "fft") if m in words), "").replace("fft", "full")


def scores_only(spec: RunSpec) -> Run:
    """A run without weights."""
    return Run(spec, infer_method(spec, None))
