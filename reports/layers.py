"""The rows of an analysis, prepared for reading: what is a matrix, what changed, where it sits in the grid."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deltaw.reports.order import place
from deltaw.reports.style import KINDS
from deltaw.results.columns import is_hidden_by_noise
from deltaw.results.rows import quote
from deltaw.types import matrix_key, matrix_label

if TYPE_CHECKING:
    import pandas as pd

    from deltaw.results.analysis import Analysis

EXPERT = re.compile(r"(?<=\.)\d+(?=\.)|(?<=expert )\d+")
OUTSIDE = "not in a layer"
FIRST = ("embedding", "conv")  # kinds that stand before the layers, where they are outside of them
ROWS, COLUMNS = 160, 160  # of a grid, at most: more cannot be told apart
HELPERS = ("key", "matrix", "changed", "slot", "site")  # columns that `Layers` adds


@dataclass(frozen=True)
class LayerGrid:
    """One value per module (row) and layer (column), NaN where there is no such matrix.

    Attributes:
        groups: What each row belongs to: what comes before the layers, a stack, or what comes after.
        labels: The module of each row.
        columns: Layer numbers as text, of several the first; the first column is empty for what is outside of layers.
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

    The frame has columns beyond the contract's: `key` (of `Analysis.spectra`), `matrix` (has ranks), `changed`, `slot`
    (its module and part) and `site` (the same with its stack, where there are several: the stages of a ResNet, encoder
    and decoder).
    """

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        frame = analysis.to_pandas().reset_index(drop=True)
        part = frame["part"].astype(str)
        frame["key"] = [matrix_key(str(n), p) for n, p in zip(frame["name"], part, strict=True)]
        frame["matrix"] = (frame["route"] != "vector") & (frame["ndim"] != 1)
        frame["changed"] = (frame["route"] != "unchanged") & ~(frame["fro_norm"] == 0)
        frame["slot"] = coarse([slot(m, p) for m, p in zip(frame["module"], part, strict=True)], [*frame["kind"]])
        frame["site"] = sites(frame)
        self.frame: pd.DataFrame = frame
        self._said: dict[str, pd.Series] = {}

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

    def said(self, column: str) -> pd.Series:
        """A column as it may be quoted, indexed as `frame`: without its rounding, NaN where rounding hides it."""
        if column not in self._said:
            if is_hidden_by_noise(column):
                found = (quote(row, column) for row in self.analysis.rows)
                values = np.array([q.value if q else np.nan for q in found], dtype=np.float64)
                self._said[column] = self.frame["rows"] * 0.0 + values
            else:
                self._said[column] = self.frame[column].astype(float)
        return self._said[column]

    @cached_property
    def readable(self) -> pd.DataFrame:
        """The changed matrices of which a rank may be quoted, each column as it may be."""
        columns = [c for c in self.changed if is_hidden_by_noise(str(c))]
        quoted = self.changed.assign(**{str(c): self.said(str(c)).reindex(self.changed.index) for c in columns})
        return quoted[quoted["rank_90"].notna()] if "rank_90" in quoted else quoted

    @cached_property
    def kinds(self) -> list[str]:
        """The module kinds of the changed matrices, in the order of the palette."""
        present = set(self.changed["kind"])
        return [k for k in KINDS if k in present] + sorted(present - set(KINDS))

    @cached_property
    def experts(self) -> pd.Series:
        """The number of each row's expert, NaN where it belongs to none."""
        where = zip(self.frame["module"], self.frame["part"], strict=True)
        return self.frame["rows"] * 0.0 + [expert(str(m), str(p)) for m, p in where]

    def grid(self, frame: pd.DataFrame, values: pd.Series) -> LayerGrid:
        """`values` (indexed as `frame`) by module and layer, in the order of the network.

        Experts of one layer share a cell. Embeddings come first, then the layers, stack by stack, then the head.
        """
        stacks = [s if not np.isnan(n) else OUTSIDE for s, n in zip(frame["stack"], frame["layer"], strict=True)]
        order = {s: i for i, s in enumerate(dict.fromkeys([s for s in stacks if s != OUTSIDE]), start=1)}
        found: dict[tuple[str, str], tuple[int, int, int]] = {}
        for stack, where, kind in zip(stacks, frame["slot"], frame["kind"], strict=True):
            outside = 0 if kind in FIRST else len(order) + 1
            found.setdefault((stack, where), (order.get(stack, outside), *place(where, kind)))
        rows = sorted(found, key=found.__getitem__)
        numbers = sorted({int(n) for n in frame["layer"].dropna()})
        step = math.ceil(len(numbers) / COLUMNS)
        binned = {n: str(numbers[i - i % step]) for i, n in enumerate(numbers)}
        columns = ([""] if OUTSIDE in stacks else []) + list(dict.fromkeys(binned.values()))
        row_of, column_of = {r: i for i, r in enumerate(rows)}, {c: i for i, c in enumerate(columns)}
        members: dict[tuple[int, int], list[int]] = {}
        for index, stack, where, layer in zip(frame.index, stacks, frame["slot"], frame["layer"], strict=True):
            column = column_of["" if stack == OUTSIDE else binned[int(layer)]]
            members.setdefault((row_of[stack, where], column), []).append(int(index))
        out = np.full((len(rows), len(columns)), np.nan)
        by_index = dict(zip(values.index, values.to_numpy(dtype=np.float64), strict=True))
        for cell, indices in members.items():
            known = [v for i in indices if not math.isnan(v := by_index.get(i, math.nan))]
            out[cell] = float(np.median(known)) if known else np.nan
        labels = [f"{stack}.*.{where}" if len(order) > 1 and stack != OUTSIDE else where for stack, where in rows]
        return LayerGrid([f"{found[r][0]}:{r[0]}" for r in rows], labels, columns, out, members)


def sites(frame: pd.DataFrame) -> list[str]:
    """The slot of each row, after its stack where there are several of them: one module of each, and not of all."""
    stacked = frame["layer"].notna()
    if frame.loc[stacked, "stack"].nunique() < 2:
        return [*frame["slot"]]
    where = zip(frame["stack"], frame["slot"], stacked, strict=True)
    return [f"{stack}.*.{slot}" if inside else str(slot) for stack, slot, inside in where]


def expert(module: str, part: str) -> float:
    """The number of the expert that a matrix belongs to; NaN where it belongs to none."""
    where = f"{module} {part}"
    known = EXPERT.search(where) if "expert" in where else None
    return float(known[0]) if known else math.nan


def coarse(slots: list[str], kinds: list[str]) -> list[str]:
    """The slots, fewer where there are more than a heatmap has room for: numbers as `*`, then kinds."""
    for simpler in (slots, [re.sub(r"\d+", "*", s) for s in slots]):
        if len(set(simpler)) <= ROWS:
            return simpler
    return kinds


def slot(module: str, part: str) -> str:
    """The row of the grid that a matrix belongs to: its module and part, with the experts' numbers as `*`."""
    where = matrix_label(str(module), part)
    return EXPERT.sub("*", where) if "expert" in where else where
