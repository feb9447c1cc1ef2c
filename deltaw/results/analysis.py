"""An analysis and its files: rows, spectra, what was skipped, and where it all came from.

`Analysis.save` writes `layers.*`, `spectra.safetensors` and `analysis.json`, each to a temporary name that is
then renamed, so that a reader never sees half a file; `load` reads them back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from deltaw.errors import OptionError, ResultsError, UnknownNameError, near
from deltaw.files import near_path, replacing
from deltaw.metrics import REGISTRY
from deltaw.results.summary import Summary, summarize
from deltaw.types import Coverage, Interval, Skipped, Spectrum

if TYPE_CHECKING:
    import pandas as pd

    from deltaw.reports.plots import AnalysisPlots

SCHEMA_VERSION = 1
FORMATS = ("csv", "parquet", "json")

TEXT = (
    "name",
    "stack",
    "module",
    "kind",
    "part",
    "base_dtype",
    "ft_dtype",
    "ft_precision",
    "base_precision",
    "route",
    "method",
)
IDENTITY = (
    *("name", "stack", "layer", "module", "kind", "part", "rows", "cols", "ndim"),
    *("base_dtype", "ft_dtype", "ft_precision", "base_precision", "route", "method", "seconds"),
)
ADAPTER = ("adapter_type", "adapter_rank", "adapter_scaling")
TEXT_COLUMNS = frozenset({*TEXT, "adapter_type", "resolution"})
WHOLE_COLUMNS = frozenset({"layer", "rows", "cols", "ndim", "adapter_rank"})


def columns() -> list[str]:
    """The columns of `layers`, in order: identity, then every registered metric by section."""
    names = list(IDENTITY)
    for m in REGISTRY.values():
        if m.section == "adapter" and "adapter_type" not in names:
            names.extend(ADAPTER)
        names.append(m.name)
    return names


@dataclass(frozen=True, repr=False)
class Analysis:
    """What was measured between one base and one fine-tuned checkpoint.

    Attributes:
        rows: One mapping of column to value per analysed matrix, in the order of the fine-tuned checkpoint.
        spectra: Singular values by `Pair.key`.
        skipped: Every tensor of both sides without a row.
        base, ft: `path` or id, `revision`, `format`, `bytes`, `tensors`; empty for `--no-base`.
        options: The options that decide the numbers.
        device: Where the linear algebra ran.
        seconds: Wall time.
        versions: deltaw's and its libraries' versions.
        notes: What a reader should know about the inputs (a stray shard, an unwrapped `state_dict`, a resized
            vocabulary).
        extra: Tables beyond the rows, by name, as lists of records (the intruder sweep).
        coverage: How much of the model was compared.
    """

    rows: Sequence[Mapping[str, Any]]
    spectra: Mapping[str, Spectrum] = field(default_factory=dict)
    skipped: Sequence[Skipped] = ()
    base: Mapping[str, Any] = field(default_factory=dict)
    ft: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    extra: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    coverage: Coverage = field(default_factory=Coverage)

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
        return [s for s in self.skipped if s.reason.startswith("failed")]

    @property
    def plot(self) -> AnalysisPlots:
        """Figures as matplotlib axes: `plot.heatmap()`, `plot.spectrum(name)`, `plot.energy()`, `plot.ranks()`."""
        from deltaw.reports.plots import AnalysisPlots

        return AnalysisPlots(self)

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a frame with the columns of the contract; what does not apply is NaN (or an empty text)."""
        import pandas as pd

        extra = sorted({c for row in self.rows for c in row} - set(columns()))
        names = _with_intervals(columns(), extra)
        data: dict[str, Any] = {}
        for name in names:
            values = [row.get(name) for row in self.rows]
            if name in TEXT_COLUMNS:
                data[name] = pd.array(["" if v is None else str(v) for v in values], dtype="str")
            elif name in {"rows", "cols", "ndim"}:
                data[name] = np.array([int(v or 0) for v in values], dtype=np.int64)
            else:
                data[name] = np.array([math.nan if v is None else float(v) for v in values], dtype=np.float64)
        return pd.DataFrame(data, columns=names)

    def spectrum(self, name: str, part: str = "") -> Spectrum:
        """The singular values of one matrix.

        Args:
            name: The tensor's name, or the key `name[part]`.
            part: The part of a fused tensor.

        Raises:
            UnknownNameError: No matrix of that name was analysed; the message suggests near names.
        """
        key = f"{name}[{part}]" if part else name
        if key not in self.spectra:
            raise UnknownNameError(f"no spectrum of {key!r} in this analysis.{near(key, self.spectra)}")
        return self.spectra[key]

    def save(self, out: str | Path, formats: Iterable[str] = ("csv", "parquet")) -> Path:
        """Write `layers.*`, `spectra.safetensors` and `analysis.json` into a directory, which is created.

        Raises:
            OptionError: A format is unknown.
            ResultsError: The directory cannot be written.
        """
        formats = list(formats)
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
                about = json.dumps(self.to_dict(), indent=1, allow_nan=False)
                paths["analysis.json"].write_text(about + "\n", encoding="utf-8")
                _write_spectra(self.spectra, paths["spectra.safetensors"])
                (out / "report.html").unlink(missing_ok=True)  # it told of other numbers
                frame = self.to_pandas()
                for name in formats:
                    _write_table(frame, paths[f"layers.{name}"], name)
                for name in set(FORMATS) - set(formats):  # an earlier table beside the new numbers would be read
                    (out / f"layers.{name}").unlink(missing_ok=True)
        except OSError as e:
            raise ResultsError(f"{out}: results cannot be written ({e.strerror or e}); choose another --out") from e
        return out

    def to_dict(self) -> dict[str, Any]:
        """What `analysis.json` holds: plain JSON values, NaN as null."""
        return cast(
            "dict[str, Any]",
            plain(
                {
                    "schema_version": SCHEMA_VERSION,
                    "versions": self.versions,
                    "base": self.base,
                    "ft": self.ft,
                    "options": self.options,
                    "device": self.device,
                    "seconds": self.seconds,
                    "skipped": [asdict(s) for s in self.skipped],
                    "notes": list(self.notes),
                    "summary": self.summary,
                    "extra": self.extra,
                }
            ),
        )

    def report(self, path: str | Path) -> Path:
        """Write the report: one HTML file that opens offline.

        Raises:
            ResultsError: The file cannot be written.
        """
        from deltaw.reports import write_analysis

        return write_analysis(self, Path(path))


def plain(value: Any) -> Any:
    """A value of JSON's types: NaN and infinities as None, mappings and sequences copied, dataclasses as mappings."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as JSON records: NaN as null, whole-numbered columns as integers."""
    rows = [{str(k): plain(v) for k, v in row.items()} for row in frame.to_dict("records")]
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float) and is_whole(name):
                row[name] = int(value)
    return rows


def is_whole(column: str) -> bool:
    """Whether the values of a column are whole numbers, so that text shows 16 and not 16.0."""
    found = REGISTRY.get(column)
    return column in WHOLE_COLUMNS or (found is not None and found.unit == "count")


def _with_intervals(names: list[str], extra: list[str]) -> list[str]:
    """`names` with each `x_low`, `x_high` of `extra` behind its `x`, and what is left at the end."""
    out = []
    for name in names:
        out.append(name)
        out.extend(e for suffix in ("_low", "_high") if (e := name + suffix) in extra)
    return out + [e for e in extra if e not in out]


def _write_table(frame: pd.DataFrame, path: Path, form: str) -> None:
    if form == "csv":
        text = frame.astype({c: "Int64" for c in frame.columns if is_whole(str(c))})
        text.to_csv(path, index=False)  # floats are written by repr: they read back to the same bits
    elif form == "parquet":
        frame.to_parquet(path, index=False)
    else:
        path.write_text(json.dumps(records(frame), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _write_spectra(spectra: Mapping[str, Spectrum], path: Path) -> None:
    from safetensors.numpy import save

    about = {
        key: {
            "rows": s.rows,
            "cols": s.cols,
            "method": s.method,
            "energy": s.energy,
            "estimates": {k: list(v) for k, v in s.estimates.items()},
            "note": s.note,
        }
        for key, s in spectra.items()
    }
    values = {key: np.ascontiguousarray(s.values, dtype=np.float64) for key, s in spectra.items()}
    path.write_bytes(save(values, metadata={"spectra": json.dumps(about)}))


def read_spectra(path: Path) -> dict[str, Spectrum]:
    """The spectra that `Analysis.save` wrote.

    Raises:
        ResultsError: The file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    out: dict[str, Spectrum] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("spectra", "{}"))
            for key in file.keys():  # noqa: SIM118  (a safetensors file is no mapping)
                a = about[key]
                estimates = {k: Interval(*v) for k, v in a["estimates"].items()}
                out[key] = Spectrum(
                    file.get_tensor(key), a["rows"], a["cols"], a["method"], a["energy"], estimates, a["note"]
                )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as e:
        raise ResultsError(f"{path}: spectra cannot be read ({e}); run analyze again") from e
    return out


def read_layers(folder: Path) -> pd.DataFrame:
    """The table of layers of a results directory, from whichever format is there.

    Raises:
        ResultsError: There is none, or it cannot be read.
    """
    import pandas as pd

    try:
        if (path := folder / "layers.parquet").exists():
            return pd.read_parquet(path)
        if (path := folder / "layers.csv").exists():
            frame = pd.read_csv(path, dtype=str, keep_default_na=False)
            return _typed(frame)
        if (path := folder / "layers.json").exists():
            return _typed(pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError) as e:
        raise ResultsError(f"{path}: the table cannot be read ({e}); run analyze again") from e
    raise ResultsError(f"{folder}: no layers.parquet, layers.csv or layers.json there; is it an --out of analyze?")


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    for name in frame.columns:
        if name in {"rows", "cols", "ndim"}:
            frame[name] = frame[name].astype(np.int64)
        elif name not in TEXT_COLUMNS:  # Python's float: exact for what repr wrote, which pandas' parsers need not be
            frame[name] = [math.nan if v is None or v == "" else float(v) for v in frame[name]]
    return frame


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
        raise ResultsError(f"{out}: {what}; expected a directory that analyze wrote (--out){'.' if hint else ''}{hint}")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        version = about["schema_version"]
        if version != SCHEMA_VERSION:
            raise ResultsError(f"{path}: schema_version {version}, expected {SCHEMA_VERSION}; run analyze again")
        skipped = [Skipped(**s) for s in about["skipped"]]
        frame = read_layers(out)
        rows = [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]
        keys = ("base", "ft", "options", "device", "seconds", "versions", "notes", "extra")
        coverage = Coverage(**{f.name: about["summary"]["coverage"][f.name] for f in fields(Coverage) if f.init})
        spectra = read_spectra(out / "spectra.safetensors")
        return Analysis(rows, spectra, skipped, coverage=coverage, **{k: about[k] for k in keys})
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ResultsError(f"{path}: cannot be read ({e}); run analyze again") from e
