"""An analysis and its files: rows, spectra, what was skipped, and where it all came from.

`Analysis.save` writes `layers.*`, `spectra.safetensors` and `analysis.json`, each to a temporary name that is
then renamed, so that a reader never sees half a file; `load` reads them back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw.documents import read_object
from deltaw.errors import OptionError, ResultsError, UnknownNameError, near
from deltaw.files import near_path, replacing
from deltaw.results import about
from deltaw.results.plain import plain
from deltaw.results.shares import Share
from deltaw.results.sources import Source
from deltaw.results.spectra_file import read_spectra, write_spectra
from deltaw.results.summarize import summarize
from deltaw.results.summary import Summary
from deltaw.results.tables import FORMATS, read_layers, to_frame, write_table
from deltaw.types import (
    Coverage,
    IntruderCount,
    JsonValue,
    OptionValue,
    Reason,
    Row,
    Skipped,
    Spectrum,
    matrix_key,
    matrix_label,
)

if TYPE_CHECKING:
    import pandas as pd

    from deltaw.reports.plots import AnalysisPlots

SCHEMA_VERSION = 2


@dataclass(frozen=True, repr=False)
class Analysis:
    """What was measured between one base and one fine-tuned checkpoint.

    Attributes:
        rows: One mapping of column to value per analysed matrix, in the order of the fine-tuned checkpoint.
        spectra: Singular values by `Pair.key`.
        skipped: Every tensor of both sides without a row.
        base, ft: What was compared; no base for `--no-base`.
        options: The options that decide the numbers.
        device: Where the linear algebra ran.
        seconds: Wall time.
        versions: deltaw's and its libraries' versions.
        notes: What a reader should know about the inputs (a stray shard, an unwrapped `state_dict`, a resized
            vocabulary).
        intruders: Intruder dimensions of each matrix by several definitions; empty without `alignment`.
        coverage: How much of the model was compared.
        command: What repeats the analysis; empty where a side was given in memory.
        date: When it was done, UTC, ISO 8601; empty where it is not known.
        share: Which share of the whole this is (`--part`); None where it is all of it.
    """

    rows: Sequence[Row]
    spectra: Mapping[str, Spectrum] = field(default_factory=dict)
    skipped: Sequence[Skipped] = ()
    base: Source | None = None
    ft: Source = field(default_factory=Source)
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    device: str = "cpu"
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    intruders: Sequence[IntruderCount] = ()
    coverage: Coverage = field(default_factory=Coverage)
    command: str = ""
    date: str = ""
    share: Share | None = None

    def __repr__(self) -> str:
        """One line."""
        from deltaw.reports.notebook import analysis_line

        return analysis_line(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: the sentences, a table and a heatmap."""
        from deltaw.reports.notebook import analysis_html

        return analysis_html(self)

    @cached_property
    def summary(self) -> Summary:
        """What the rows say of the whole model."""
        return summarize(self.rows, self.skipped, self.coverage)

    @property
    def failed(self) -> list[Skipped]:
        """The tensors that should have a row and could not be measured."""
        return [s for s in self.skipped if s.because == Reason.FAILED]

    @property
    def plot(self) -> AnalysisPlots:
        """Figures as matplotlib axes: `plot.heatmap()`, `plot.spectrum(name)`, `plot.energy()`, `plot.ranks()`."""
        from deltaw.reports.plots import AnalysisPlots

        return AnalysisPlots(self)

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a frame with the columns of the contract; what does not apply is NaN (or an empty text)."""
        return to_frame(self.rows)

    def spectrum(self, name: str, part: str = "") -> Spectrum:
        """The singular values of one matrix.

        Args:
            name: The tensor's name.
            part: The part of a fused tensor.

        Raises:
            UnknownNameError: No matrix of that name was analysed; the message suggests near names.
        """
        key = matrix_key(name, part)
        if key not in self.spectra:
            wanted = matrix_label(name, part)
            labels = [matrix_label(str(r["name"]), str(r.get("part") or "")) for r in self.rows if r.get("method")]
            raise UnknownNameError(f"no spectrum of {wanted!r} in this analysis.{near(wanted, labels)}")
        return self.spectra[key]

    def save(self, out: str | Path, formats: Iterable[str] = ("csv", "parquet")) -> Path:
        """Write `layers.*`, `spectra.safetensors` and `analysis.json` into a directory, which is created.

        Raises:
            OptionError: A format is unknown.
            ResultsError: The directory cannot be written.
        """
        formats = list(dict.fromkeys(formats))
        for name in formats:
            if name not in FORMATS:
                raise OptionError(f"format {name!r} is unknown; expected one of {', '.join(FORMATS)}")
        out = Path(out)
        try:
            out.mkdir(parents=True, exist_ok=True)
            with ExitStack() as files:
                # Contexts end in reverse: nothing is renamed before everything is written, analysis.json comes last.
                names = ("analysis.json", "spectra.safetensors", *(f"layers.{f}" for f in formats))
                paths = {name: files.enter_context(replacing(out / name)) for name in names}
                text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
                paths["analysis.json"].write_text(text + "\n", encoding="utf-8")
                write_spectra(self.spectra, paths["spectra.safetensors"])
                (out / "report.html").unlink(missing_ok=True)  # it told of other numbers
                frame = self.to_pandas()
                for name in formats:
                    write_table(frame, paths[f"layers.{name}"], name)
                for name in set(FORMATS) - set(formats):  # an earlier table beside the new numbers would be read
                    (out / f"layers.{name}").unlink(missing_ok=True)
        except OSError as e:
            raise ResultsError(f"{out}: results cannot be written ({e.strerror or e}); choose another --out") from e
        return out

    def to_dict(self) -> dict[str, JsonValue]:
        """What `analysis.json` holds: plain JSON values, NaN as null."""
        return {
            "schema_version": SCHEMA_VERSION,
            "versions": plain(self.versions),
            "base": {} if self.base is None else self.base.to_dict(),
            "ft": self.ft.to_dict(),
            "options": plain(self.options),
            "command": self.command,
            "date": self.date,
            "device": self.device,
            "seconds": plain(self.seconds),
            "skipped": [s.to_dict() for s in self.skipped],
            "notes": list(self.notes),
            "share": None if self.share is None else self.share.to_dict(),
            "summary": plain(self.summary),
            "intruders": plain(self.intruders),
        }

    def report(self, path: str | Path) -> Path:
        """Write the report: one HTML file that opens offline.

        Raises:
            ResultsError: The file cannot be written.
        """
        from deltaw.reports import write_analysis

        return write_analysis(self, Path(path))


def load(out: str | Path) -> Analysis:
    """Read what `Analysis.save` wrote.

    Raises:
        ResultsError: The directory holds no results, or they cannot be read.
    """
    out = Path(out)
    path = out / "analysis.json"
    if not path.exists():
        what = "no analysis.json there" if out.exists() else "no such directory"
        hint = "" if out.exists() else near_path(out)
        if (out / "comparison.json").exists():
            hint = " It holds a comparison: Comparison.load reads it."
        raise ResultsError(f"{out}: {what}; expected a directory that analyze wrote (--out){'.' if hint else ''}{hint}")
    stored = read_object(path, error=ResultsError)
    version = stored.whole("schema_version", 0)
    if version != SCHEMA_VERSION:
        raise ResultsError(f"{path}: schema_version {version}, expected {SCHEMA_VERSION}; run analyze again")
    frame = read_layers(out)
    return Analysis(
        rows=[{str(k): v for k, v in row.items()} for row in frame.to_dict("records")],
        spectra=read_spectra(out / "spectra.safetensors"),
        skipped=[about.skipped(s) for s in stored.inners("skipped")],
        base=about.source(stored.inner("base")),
        ft=about.source(stored.inner("ft")) or Source(),
        options=about.options(stored.inner("options")),
        device=stored.text("device"),
        seconds=stored.number("seconds", 0.0),
        versions=about.texts(stored.inner("versions")),
        notes=stored.texts("notes"),
        intruders=[about.intruders(i) for i in stored.inners("intruders")],
        coverage=about.coverage(stored.inner("summary").inner("coverage")),
        command=stored.text("command"),
        date=stored.text("date"),
        share=about.share(stored.inner("share")),
    )
