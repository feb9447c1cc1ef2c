"""A checkpoint that was edited: what each operation took out, of which tensors."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from deltaw.edits.extracted import percent
from deltaw.edits.operations import EditedRow
from deltaw.files import replacing
from deltaw.results.plain import plain
from deltaw.results.sources import Source
from deltaw.types import JsonValue, Reason, Skipped, counted


@dataclass(frozen=True)
class Edited:
    """What `deltaw.edit` wrote.

    Attributes:
        out: The directory.
        base, ft: What it was made from.
        operations: What was asked for.
        rows: One per matrix and operation that changed it.
        skipped: Tensors that failed, or could not be dropped, with their reason.
        decay: The weight decay that was taken out.
    """

    out: str
    base: Source
    ft: Source
    operations: Mapping[str, JsonValue]
    rows: tuple[EditedRow, ...] = field(repr=False)
    skipped: tuple[Skipped, ...] = field(default=(), repr=False)
    decay: float | None = None

    @property
    def failed(self) -> list[Skipped]:
        """The tensors that could not be read or solved."""
        return [s for s in self.skipped if s.because is Reason.FAILED]

    def sentences(self) -> list[str]:
        """What each operation took out."""
        out = []
        for name in dict.fromkeys(r.operation for r in self.rows):
            rows = [r for r in self.rows if r.operation == name]
            before, after = sum(r.norm_before**2 for r in rows), sum(r.norm_after**2 for r in rows)
            counts = [r.directions for r in rows if r.directions is not None]
            what = f", {counted(sum(counts), 'direction')}" if counts else ""
            share = 1 - after / before if before else 0.0
            moved = f"{percent(share)} of their energy" if share >= 0 else f"their energy grew by {percent(-share)}"
            out.append(f"--{name}: {counted(len(rows), 'tensor')}{what}, {moved}")
        if self.decay is not None:
            out.append(f"The common decay was {self.decay:.4g}.")
        return out or ["Nothing was changed: the checkpoint is the fine-tuned one, bit for bit."]

    def to_dict(self) -> dict[str, JsonValue]:
        """One JSON object."""
        return {
            "out": self.out,
            "base": self.base.to_dict(),
            "ft": self.ft.to_dict(),
            "operations": dict(self.operations),
            "rows": plain(self.rows),
            "skipped": [s.to_dict() for s in self.skipped],
            "decay": self.decay,
        }


def write_rows(rows: Sequence[EditedRow], path: Path) -> None:
    """Write `edit.csv`."""
    out = io.StringIO()
    names = [f.name for f in fields(EditedRow)]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow(["" if (v := getattr(row, name)) is None else v for name in names])
    with replacing(path) as temporary:
        temporary.write_text(out.getvalue(), encoding="utf-8")
