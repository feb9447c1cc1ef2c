"""A comparison: its tables, its files and its report."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from deltaw.comparison import analysis_cache, loading, same_base, saved
from deltaw.comparison.claims import all_claims, claims_frame
from deltaw.comparison.claims.verdicts import Claim
from deltaw.comparison.command import command
from deltaw.comparison.contrasts import contrasts_frame
from deltaw.comparison.copies import without_copies
from deltaw.comparison.fingerprint import fingerprints_frame
from deltaw.comparison.fronts import FrontDifference, compare_fronts, fronts_frame
from deltaw.comparison.loading import Results
from deltaw.comparison.manifest import Manifest, read_manifest
from deltaw.comparison.naming import aligned, partial, unshared
from deltaw.comparison.predictors import predictors_frame
from deltaw.comparison.roles import arenas
from deltaw.comparison.runs import Run, Runs, runs_frame
from deltaw.comparison.similarity_weights import similarity_of
from deltaw.comparison.tables import NAMES, ComparisonRecord, Origin, json_records, layers_frame, write_tables
from deltaw.comparison.trajectories import trajectories_frame
from deltaw.errors import ManifestError, OptionError, near
from deltaw.measurement.versions import versions
from deltaw.types import JsonValue

if TYPE_CHECKING:
    import pandas as pd

    from deltaw.measurement.options import AnalyzeOptions
    from deltaw.reports.comparison_plots import ComparisonPlots

LISTED = 8  # groups in a message, where none is near
Reporter = Callable[[str, int, int], Callable[[Any], None] | None]


class Comparison:
    """Several runs of one base, contrasted. Made by `deltaw.compare`.

    Attributes:
        title: As the manifest says.
        warnings: What a reader should know about the runs.
        runs_: The runs themselves.
        origin: The command, the date and the versions that made it.
    """

    def __init__(
        self,
        runs: Runs,
        *,
        title: str = "",
        warnings: Sequence[str] = (),
        base: Any = None,
        similarity: bool | None = None,
        origin: Origin | None = None,
    ):
        items, copies = without_copies(runs.items)
        self.title = title
        self.warnings = list(dict.fromkeys([*warnings, *copies]))
        self.origin = origin or Origin()
        self.runs_ = replace(runs, items=items)
        self._base = base
        self._wanted = similarity

    @classmethod
    def load(cls, folder: str | Path) -> Comparison:
        """Read what `save` wrote; the weights of the runs are not needed.

        Raises:
            ResultsError: The directory holds no comparison, or it cannot be read.
        """
        about, runs, similar = saved.read(Path(folder))
        out = cls(
            Runs(runs, about.reference, about.seed), title=about.title, warnings=about.warnings, origin=about.origin
        )
        out._similar = similar, about.similarity_note
        return out

    def __repr__(self) -> str:
        """One line."""
        from deltaw.reports.notebook import comparison_line

        return comparison_line(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: the runs and what they say of the claims."""
        from deltaw.reports.notebook import comparison_html

        return comparison_html(self)

    @property
    def reference(self) -> str:
        """The group that the others are compared with."""
        return self.runs_.reference

    @property
    def groups(self) -> list[str]:
        """The groups, in the order of the manifest."""
        return list(self.runs_.groups)

    def runs(self) -> pd.DataFrame:
        """One row per run: group, method, seed, tokens, scores, medians; see `runs.runs_frame`."""
        return self._frame("runs")

    def layers(self) -> pd.DataFrame:
        """The layers of all analysed runs, long: `run` and `group`, then the columns of `analyze`."""
        return self._frame("layers")

    def contrasts(self) -> pd.DataFrame:
        """One row per metric and pair of groups; see `contrasts.contrasts_frame`."""
        return self._frame("contrasts")

    def fingerprints(self) -> pd.DataFrame:
        """One row per group; see `fingerprint.fingerprints_frame`."""
        return self._frame("fingerprints")

    def fronts(self) -> pd.DataFrame:
        """Retention at matched learning and the reverse; see `fronts.fronts_frame`."""
        return self._frame("fronts")

    def trajectories(self) -> pd.DataFrame:
        """Curves over tokens; see `trajectories.trajectories_frame`."""
        return self._frame("trajectories")

    def claims(self) -> pd.DataFrame:
        """What these runs say about published claims; see `claims.claims_frame`."""
        return self._frame("claims")

    def predictors(self) -> pd.DataFrame:
        """Which measure of an update tells what was learned and forgotten; see `predictors.predictors_frame`."""
        return self._frame("predictors")

    def similarity(self) -> pd.DataFrame:
        """How alike the updates are, by pair of runs and kind; empty without access to the weights."""
        return self._similar[0].copy()

    @property
    def plot(self) -> ComparisonPlots:
        """Figures as matplotlib axes: `plot.pareto()`, `plot.spectra()`, `plot.fingerprints()`."""
        from deltaw.reports.comparison_plots import ComparisonPlots

        return ComparisonPlots(self)

    def _frame(self, name: str) -> pd.DataFrame:
        frame: pd.DataFrame = getattr(self, f"_{name}")
        return frame.copy()  # a caller may change what he gets

    @cached_property
    def _runs(self) -> pd.DataFrame:
        return runs_frame(self.runs_)

    @cached_property
    def _layers(self) -> pd.DataFrame:
        return layers_frame(self.runs_)

    @cached_property
    def _contrasts(self) -> pd.DataFrame:
        return contrasts_frame(self.runs_)

    @cached_property
    def _fingerprints(self) -> pd.DataFrame:
        return fingerprints_frame(self.runs_, self.gaps)

    @cached_property
    def gaps(self) -> list[FrontDifference]:
        """Every pair of fronts, with the estimates that their intervals come from."""
        return compare_fronts(self.runs_)

    @cached_property
    def _fronts(self) -> pd.DataFrame:
        return fronts_frame(self.gaps)

    @cached_property
    def _trajectories(self) -> pd.DataFrame:
        return trajectories_frame(self.runs_)

    @cached_property
    def _predictors(self) -> pd.DataFrame:
        return predictors_frame(self.runs_)

    @cached_property
    def _claims(self) -> pd.DataFrame:
        return claims_frame(self.checked)

    @cached_property
    def checked(self) -> list[Claim]:
        """The claims with their comparisons, as the table of claims and the report's figures read them."""
        return all_claims(self.runs_, self.gaps)

    @cached_property
    def _similar(self) -> tuple[pd.DataFrame, str]:
        return similarity_of(self.runs_, self._base, wanted=self._wanted)

    @property
    def similarity_note(self) -> str:
        """Why the table of similarities is empty or covers part of the runs; else empty."""
        return self._similar[1]

    @property
    def about(self) -> ComparisonRecord:
        """What is written beside the tables."""
        runs = [r.spec.name for r in self.runs_.items]
        return ComparisonRecord(
            title=self.title,
            reference=self.reference,
            groups=self.groups,
            runs=runs,
            seed=self.runs_.seed,
            warnings=self.warnings,
            similarity_note=self.similarity_note,
            base=self.bases,
            origin=self.origin,
        )

    @property
    def bases(self) -> list[str]:
        """What the runs were measured against: path or id, revision and content hash; empty with scores only."""
        known = {run.analysed.base for run in self.runs_.items} - {None}
        return sorted({" ".join(filter(None, (b.path, b.revision, b.hash))) for b in known if b is not None})

    def to_dict(self) -> dict[str, JsonValue]:
        """Every table but the layers, as JSON values: NaN is null."""
        shown = {name: json_records(getattr(self, name)()) for name in NAMES if name != "layers"}
        return asdict(self.about) | {"runs": shown.pop("runs")} | shown

    def save(self, out: str | Path, *, report: bool = True, force: bool = False) -> Path:
        """Write `runs.csv`, `layers.csv`, `contrasts.csv` and the other tables, and `report.html`.

        Args:
            out: A directory, created.
            report: Also write the report.
            force: Overwrite the comparison of other runs, or the results of an analysis.

        Raises:
            ResultsError: The directory holds something else, or cannot be written.
        """
        out = Path(out)
        tables = {name: getattr(self, name)() for name in NAMES}
        tables["spectra"] = saved.spectra_frame(self.runs_.items)
        texts = {saved.RUNS: saved.runs_text(self.runs_.items)}
        write_tables(tables, self.about, out, force=force, texts=texts)
        if report:
            self.report(out / "report.html")
        return out

    def report(self, path: str | Path) -> Path:
        """Write the report: one HTML file that opens offline.

        Raises:
            ResultsError: The file cannot be written.
        """
        from deltaw.reports.comparison import write_comparison

        return write_comparison(self, Path(path))


def compare(
    runs: str | Path | Mapping[str, Results | Sequence[Results]] | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    reference: str | None = None,
    seed: int = 0,
    similarity: bool | None = None,
    progress: Reporter | None = None,
    **options: Unpack[AnalyzeOptions],
) -> Comparison:
    """Contrast several runs of one base.

    Args:
        runs: A manifest (TOML); a mapping of group to `Analysis` (or result directory), or to a list of them, the
            group's replicates; or a list of result directories.
        out: Where analyses of checkpoints are kept (in `analyses/`) and found again; the tables are written by `save`.
        reference: The group that the others are compared with. By default the manifest's, else the first group of
            method `full`, else the first.
        seed: Of the bootstrap; the same seed gives the same numbers.
        similarity: Compare the weights of the runs with each other; by default where they are at hand and not
            too large to read.
        progress: Called with (run, index, count) before a checkpoint is analysed; may return the callback that
            `deltaw.analyze` calls after each matrix.
        options: Of `deltaw.analyze`, for the runs that are not analysed yet.

    Raises:
        ManifestError: The runs cannot be compared; every reason found, one line each.
        OptionError: An option has a bad value.
        DeltaWError: A checkpoint or saved results cannot be used.
    """
    if seed < 0 or seed != int(seed):
        raise OptionError(f"seed is {seed!r}; expected a whole number, 0 or more")
    manifest, sources = _sources(runs)
    reference = _reference(manifest, reference)
    loaded = {s.name: loading.read_run(s, sources[s.name]) for s in manifest.runs if s.name in sources}
    # What is analysed already is checked before any work starts; what is analysed here has the manifest's base.
    warnings = same_base.check_analysed(aligned(list(loaded.values())), manifest.base)
    needing = [s for s in manifest.runs if s.checkpoint is not None]
    if needing:
        assert manifest.base is not None
        folder = Path(out) / "analyses" if out is not None else None
        report = progress or (lambda name, index, count: None)
        found = analysis_cache.analyses(needing, manifest.base, folder, options, report)
        loaded |= {s.name: loading.read_run(s, found[s.name]) for s in needing}
    every = aligned([loaded.get(s.name) or loading.scores_only(s) for s in manifest.runs])
    if needing:  # and against what was there already
        warnings = list(dict.fromkeys([*warnings, *same_base.check_bases(every)]))
    warnings = [*manifest.warnings, *warnings, *unshared(every), *partial(every)]
    return Comparison(
        Runs(every, reference or _default_reference(every), seed),
        title=manifest.title,
        warnings=warnings,
        base=manifest.base,
        similarity=similarity,
        origin=Origin(
            command(runs, reference, seed, options), datetime.now(UTC).isoformat(timespec="seconds"), versions()
        ),
    )


def _sources(runs: Any) -> tuple[Manifest, dict[str, Results]]:
    if isinstance(runs, Mapping):
        return loading.from_mapping(runs)
    if isinstance(runs, (str, Path)):
        if Path(runs).is_dir():
            return loading.from_directories([runs])
        manifest = read_manifest(runs)
        return manifest, {s.name: s.results for s in manifest.runs if s.results is not None}
    if isinstance(runs, Sequence) and all(isinstance(r, (str, os.PathLike)) for r in runs):
        if not runs:
            raise ManifestError("no runs to compare; give a manifest, or result directories")
        manifests = [r for r in runs if str(r).endswith(".toml")]
        if manifests and len(runs) > 1:
            raise ManifestError(f"{manifests[0]}: a manifest is given alone; put all runs into it")
        return _sources(runs[0]) if manifests else loading.from_directories(runs)
    raise ManifestError(
        f"{type(runs).__name__} cannot be compared; expected a manifest's path, a mapping of name to "
        "analysis, or a list of result directories"
    )


def _reference(manifest: Manifest, asked: str | None) -> str | None:
    """The reference that was asked for, checked.

    Raises:
        OptionError: No run has that group.
    """
    groups = list(dict.fromkeys(s.group for s in manifest.runs))
    if asked is not None and asked not in groups:
        raise OptionError(f"reference {asked!r} is not the group of any run.{near(asked, groups, listed=LISTED)}")
    return asked or manifest.reference


def _default_reference(runs: Sequence[Run]) -> str:
    """The plainest full fine-tuning there is, else the first group."""
    groups = Runs(runs, "")
    found = next((a.full for a in arenas(groups) if a.full is not None), None)
    return found or groups.groups[0]
