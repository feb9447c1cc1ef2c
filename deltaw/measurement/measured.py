"""What measuring one matrix gives."""

from __future__ import annotations

from dataclasses import dataclass

from deltaw.types import IntruderCount, Row, Skipped, Spectrum


@dataclass(frozen=True)
class Measured:
    """A row with its spectrum, or the reason why there is none.

    Attributes:
        row: Column to value; None for a tensor that could not be measured.
        spectrum: Of a matrix; None for a vector.
        skipped: Why there is no row.
        intruders: Intruder dimensions by several definitions; empty without `alignment`.
    """

    row: Row | None
    spectrum: Spectrum | None = None
    skipped: Skipped | None = None
    intruders: tuple[IntruderCount, ...] = ()
