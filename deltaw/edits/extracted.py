"""An adapter that was written, and its certificate: what each matrix keeps, what is stored whole, what is left out."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltaw.results.plain import plain
from deltaw.results.sources import Source
from deltaw.types import JsonValue, Reason, Skipped

if TYPE_CHECKING:
    import pandas as pd

    from deltaw.edits.curve import EnergyCurve


@dataclass(frozen=True)
class ExtractedRow:
    """One matrix that got a pair.

    Attributes:
        name: The tensor; of a stack of experts with the expert in brackets.
        rows, cols: Its shape, outputs × inputs.
        rank: Of the pair.
        parameters: Numbers in the pair.
        energy_kept: Share of ‖ΔW‖F² in the directions that are kept.
        relative_error: ‖ΔW − B·A‖F/‖ΔW‖F of the factors as they are stored.
        signal_rank: Directions above the noise edge; None where more of them than are kept were not counted.
        relative_error_on_data: ‖(ΔW − B·A)·C^½‖F/‖ΔW·C^½‖F on the inputs of `activations`, of a sketch the most that it
            may be; None where they are unknown.
    """

    name: str
    rows: int
    cols: int
    rank: int
    parameters: int
    energy_kept: float
    relative_error: float
    signal_rank: int | None
    relative_error_on_data: float | None = None


@dataclass(frozen=True)
class SavedModule:
    """A module (or bias) that is stored as it is, and why."""

    name: str
    parameters: int
    why: str


@dataclass(frozen=True)
class Extraction:
    """What `deltaw.extract` and `deltaw.resize` wrote.

    Attributes:
        out: The directory.
        base, ft: What it was made from; no base for a resized adapter.
        policy: What was asked for.
        dtype: The factors' dtype.
        layers: One row per matrix that got a pair.
        saved: What is stored whole.
        skipped: What is left out, with its reason.
        energy_kept: Share of the energy of all compared matrices together that the pairs keep.
        relative_error: √(Σ‖ΔW − BA‖²/Σ‖ΔW‖²) over all compared matrices.
        gap: How far from the best choice within a budget this one may be, as a share of the energy; 0 for the best.
        notes: What a reader should know.
        command: The command that makes it again; empty where a side was in memory.
        activations: The file of the data set that the pairs were made for; empty without one.
        relative_error_on_data: √(Σ‖(ΔW − BA)·C^½‖²/Σ‖ΔW·C^½‖²) over the compared matrices whose inputs it has.
        sketched: Whether that is a bound, as the file holds sketches.
        curve: What more or fewer numbers would keep; None for pairs that were made for a data set.
    """

    out: str
    base: Source | None
    ft: tuple[Source, ...]
    policy: Mapping[str, JsonValue]
    dtype: str
    layers: tuple[ExtractedRow, ...] = field(repr=False)
    saved: tuple[SavedModule, ...] = field(repr=False)
    skipped: tuple[Skipped, ...] = field(repr=False)
    energy_kept: float
    relative_error: float
    gap: float = 0.0
    notes: tuple[str, ...] = field(default=(), repr=False)
    command: str = ""
    activations: str = ""
    relative_error_on_data: float | None = None
    sketched: bool = False
    curve: EnergyCurve | None = field(default=None, repr=False)

    @property
    def parameters(self) -> int:
        """Numbers in the whole adapter."""
        return sum(row.parameters for row in self.layers) + sum(s.parameters for s in self.saved)

    @property
    def failed(self) -> list[Skipped]:
        """The tensors that could not be read or solved."""
        return [s for s in self.skipped if s.because is Reason.FAILED]

    def sentences(self) -> list[str]:
        """The certificate in words."""
        ranks = [row.rank for row in self.layers]
        low, high = min(ranks), max(ranks)
        span = f"rank {low}" if low == high else f"ranks {low} to {high}"
        size = sum(row.rows * row.cols for row in self.layers)
        pairs = sum(row.parameters for row in self.layers)
        out = [
            f"{len(ranks):,} {'pair' if len(ranks) == 1 else 'pairs'} of {span} with {pairs:,} numbers "
            f"({percent(pairs / size)} of their matrices) keep {percent(self.energy_kept)} of the update's energy: "
            f"relative error {self.relative_error:.2g}, measured on what was written ({self.dtype})."
        ]
        if self.relative_error_on_data is not None:
            out.append(
                f"They were made for the inputs in {Path(self.activations).name}: on those the relative error is "
                f"{'at most ' if self.sketched else ''}{self.relative_error_on_data:.2g}."
            )
        if self.saved:
            whole = sum(s.parameters for s in self.saved)
            what = "one module or bias" if len(self.saved) == 1 else f"{len(self.saved):,} modules and biases"
            out.append(f"Stored whole: {what} with {whole:,} numbers.")
        if self.skipped:
            what = "one tensor" if len(self.skipped) == 1 else f"{len(self.skipped):,} tensors"
            out.append(f"Left out: {what}; README.md says why.")
        if self.gap > 0:
            out.append(f"No choice within the budget keeps more than {percent(self.gap)} more.")
        return out

    def to_dict(self) -> dict[str, JsonValue]:
        """One JSON object, as `--json` prints it."""
        return {
            "out": self.out,
            "base": {} if self.base is None else self.base.to_dict(),
            "ft": [side.to_dict() for side in self.ft],
            "policy": dict(self.policy),
            "dtype": self.dtype,
            "parameters": self.parameters,
            "energy_kept": plain(self.energy_kept),
            "relative_error": plain(self.relative_error),
            "gap": plain(self.gap),
            "layers": plain(self.layers),
            "saved": plain(self.saved),
            "skipped": [s.to_dict() for s in self.skipped],
            "notes": list(self.notes),
            "command": self.command,
            "activations": self.activations,
            "relative_error_on_data": plain(self.relative_error_on_data),
        }

    def to_pandas(self) -> pd.DataFrame:
        """The rows of extraction.csv as a frame."""
        import pandas as pd

        return pd.read_csv(io.StringIO(table(self.layers)))

    def plot(self) -> Any:
        """Energy kept against numbers in the pairs, as matplotlib axes: the best choice, this one, one rank for all.

        Raises:
            OptionError: The adapter was made for a data set, whose energy is another one.
        """
        from deltaw.reports.energy_curve import draw

        return draw(self)

    def write_picture(self) -> None:
        """Write `energy.svg` beside the adapter, where there is a curve to draw.

        Raises:
            ResultsError: It cannot be written.
        """
        if self.curve is not None:
            from deltaw.reports import figures

            figures.save(figures.of(self.plot()), Path(self.out), "energy", figures.KINDS[:1])

    def __repr__(self) -> str:
        return f"<deltaw.Extraction in {self.out}: {self.sentences()[0]}>"


def table(rows: Sequence[ExtractedRow]) -> str:
    """`extraction.csv`; its numbers read back to the same bits."""
    out = io.StringIO()
    names = [f.name for f in fields(ExtractedRow)]
    if all(row.relative_error_on_data is None for row in rows):
        names.remove("relative_error_on_data")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        cells = [getattr(row, name) for name in names]
        writer.writerow(["" if v is None or v != v else repr(v) if isinstance(v, float) else v for v in cells])
    return out.getvalue()


def percent(share: float) -> str:
    """`93.2 %`, with as many digits as tell it from all and nothing."""
    if not math.isfinite(share):
        return "an unknown share"
    digits = 1 if share < 0.995 or share >= 1 else min(6, 1 - math.floor(math.log10(1 - share) + 2) + 1)
    return f"{100 * share:.{max(1, digits)}f} %"


def write_table(rows: Sequence[ExtractedRow], path: Path) -> None:
    """Write `extraction.csv`."""
    from deltaw.files import replacing

    with replacing(path) as temporary:
        temporary.write_text(table(rows), encoding="utf-8")
