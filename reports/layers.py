"""The rows of an analysis, prepared for reading: what is a matrix, what changed, where it sits in the grid."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deltaw.reports.style import KINDS
from deltaw.results.rows import CLEAR

if TYPE_CHECKING:
    import pandas as pd

    from deltaw.results.analysis import Analysis

EXPERT = re.compile(r"(?<=\.)\d+(?=\.)|(?<=expert )\d+")
OUTSIDE = "not in a layer"
HELPERS = ("key", "matrix", "changed", "clear", "slot")  # columns that `Layers` adds


@dataclass(frozen=True)
class Grid:
    """One value per module (row) and layer (column), NaN where there is no such matrix.

    Attributes:
        groups: The stack that each row belongs to.
        labels: The module of each row.
        columns: Layer numbers as text; the first is empty for what is outside of layers, if there is such.
        values: (rows, columns), the median over the matrices of a cell.
        members: Row numbers of the frame, by (row, column).
    """

    groups: list[str]
    labels: list[str]
    columns: list[str]
    values: NDArray[np.float64]
    members: dict[tuple[int, int], list[int]]


class Layers:
    """A frame of `layers` with the views that a report is made of.

    The frame has columns beyond the contract's: `key` (of `Analysis.spectra`), `matrix` (has ranks), `changed`,
    `clear` (of rounding) and `slot` (its row of the grid).
    """

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        frame = analysis.to_pandas().reset_index(drop=True)
        part = frame["part"].astype(str)
        frame["key"] = frame["name"].astype(str) + np.where(part != "", "[" + part + "]", "")
        frame["matrix"] = (frame["route"] != "vector") & (frame["ndim"] != 1)
        frame["changed"] = (frame["route"] != "unchanged") & ~(frame["fro_norm"] == 0)
        frame["clear"] = frame["resolution"].isin(CLEAR)
        frame["slot"] = [slot(m, p) for m, p in zip(frame["module"], part, strict=True)]
        self.frame: pd.DataFrame = frame

    @cached_property
    def matrices(self) -> pd.DataFrame:
        """The rows that have a spectrum."""
        return self.frame[self.frame["matrix"]]

    @cached_property
    def vectors(self) -> pd.DataFrame:
        """Norms and biases."""
        return self.frame[~self.frame["matrix"]]

    @cached_property
    def changed(self) -> pd.DataFrame:
        """The matrices that changed."""
        return self.matrices[self.matrices["changed"]]

    @cached_property
    def clear(self) -> pd.DataFrame:
        """The changed matrices that stand clear of rounding: only of these a rank is claimed."""
        return self.changed[self.changed["clear"]]

    @cached_property
    def kinds(self) -> list[str]:
        """The module kinds of the changed matrices, in the order of the palette."""
        present = set(self.changed["kind"])
        return [k for k in KINDS if k in present] + sorted(present - set(KINDS))

    def grid(self, frame: pd.DataFrame, values: pd.Series) -> Grid:
        """`values` (indexed as `frame`) by module and layer.

        Experts of one layer share a cell. Modules keep the order of the checkpoint; those outside of layers come last.
        """
        stacks = [s if not np.isnan(n) else OUTSIDE for s, n in zip(frame["stack"], frame["layer"], strict=True)]
        order = {s: i for i, s in enumerate(dict.fromkeys([s for s in stacks if s != OUTSIDE]))}
        order[OUTSIDE] = len(order)
        rows = list(dict.fromkeys(zip(stacks, frame["slot"], strict=True)))
        rows.sort(key=lambda r: order[r[0]])
        layers = sorted({int(n) for n in frame["layer"].dropna()})
        columns = ([""] if OUTSIDE in stacks else []) + [str(n) for n in layers]
        row_of, column_of = {r: i for i, r in enumerate(rows)}, {c: i for i, c in enumerate(columns)}
        members: dict[tuple[int, int], list[int]] = {}
        for index, stack, where, layer in zip(frame.index, stacks, frame["slot"], frame["layer"], strict=True):
            column = column_of["" if stack == OUTSIDE else str(int(layer))]
            members.setdefault((row_of[stack, where], column), []).append(int(index))
        out = np.full((len(rows), len(columns)), np.nan)
        for cell, indices in members.items():
            known = values.reindex(indices).dropna()
            out[cell] = float(known.median()) if len(known) else np.nan
        return Grid([r[0] for r in rows], [r[1] for r in rows], columns, out, members)


def slot(module: str, part: str) -> str:
    """The row of the grid that a matrix belongs to: its module and part, with the experts' numbers as `*`."""
    where = f"{module}[{part}]" if part else str(module)
    return EXPERT.sub("*", where) if "expert" in where else where
