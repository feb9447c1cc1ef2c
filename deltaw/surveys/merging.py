"""What a proposed merge would do: how much of each adapter survives the sum of all, plain and by TIES.

* energy_ratio: ‖ΣΔ‖² / Σ‖Δ‖²: 1 where they are orthogonal, their number where they are equal, 0 where they cancel.
* sign_disagreement: the share of entries, of those that two at least change, on which not all agree in sign.
* survives: the share of an adapter's energy on entries where the merged update has its sign.
* gain: ⟨merged, Δ⟩ / ‖Δ‖²: what of it stands in the merge, along itself; 1 is all of it.

TIES (Yadav et al. 2023), matrix by matrix: the largest 20 % of the entries of each, the sign that their sum has, the
mean of those that have it. What is not linear in Δ comes from whole matrices, or of large ones from random rows.

Source: Ilharco et al. 2023 (task arithmetic); Yadav et al. 2023, TIES-Merging.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from deltaw.checkpoints import Checkpoint
from deltaw.comparison.similarity import inner
from deltaw.delta.difference import difference
from deltaw.pairs.selection import Selection
from deltaw.spectra import seeded
from deltaw.surveys.opened import open_member
from deltaw.surveys.table import kind_of
from deltaw.tensors.matrix import outputs
from deltaw.tensors.names import natural
from deltaw.types import Factors, JsonValue, Pair, Vector, is_update
from deltaw.types import Matrix as Array

if TYPE_CHECKING:
    from torch import Tensor

DENSITY = 0.2  # of TIES
ENTRIES = 1 << 18  # of a matrix; of a larger one rows are drawn
ALL = "all"


@dataclass(frozen=True)
class MergeShare:
    """What is left of one adapter in a merge: `method` is `sum` or `ties`."""

    name: str
    method: str
    kind: str
    survives: float
    gain: float


@dataclass(frozen=True)
class Interference:
    """How the adapters of a merge lie to each other, over the matrices of one kind of module."""

    kind: str
    matrices: int
    energy_ratio: float
    sign_disagreement: float


@dataclass(frozen=True)
class Merge:
    """A proposed merge, all weights 1.

    Attributes:
        names: The adapters.
        interference: Over all matrices first, then by kind of module.
        kept: What is left of each.
    """

    names: tuple[str, ...]
    interference: tuple[Interference, ...]
    kept: tuple[MergeShare, ...]

    def to_dict(self) -> dict[str, JsonValue]:
        """As JSON values."""
        return {
            "names": list(self.names),
            "density": DENSITY,
            "interference": [asdict(i) for i in self.interference],
            "kept": [asdict(k) for k in self.kept],
        }


@dataclass(frozen=True)
class MergeSums:
    """Sums over matrices, for n adapters and the methods of `METHODS`.

    Attributes:
        gram: ⟨Δ_i, Δ_j⟩, (n, n), exact.
        energy: ‖Δ_i‖² of the rows that were looked at, (n,).
        survived: Of it, on entries where the merged update has the sign, (methods, n).
        along: ⟨merged, Δ_i⟩ of those rows, (methods, n).
        shared: Entries that two adapters at least change.
        differing: Of them, those on which signs differ.
        matrices: How many.
    """

    gram: Array
    energy: Vector
    survived: Array
    along: Array
    shared: float = 0.0
    differing: float = 0.0
    matrices: int = 0

    @staticmethod
    def zero(count: int) -> MergeSums:
        """Of no matrix yet."""
        return MergeSums(np.zeros((count, count)), np.zeros(count), np.zeros((2, count)), np.zeros((2, count)))

    def plus(self, other: MergeSums) -> MergeSums:
        """Of the matrices of both."""
        return MergeSums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


METHODS = ("sum", "ties")


def check_merge(
    base: Checkpoint | None,
    chosen: Mapping[str, str],
    selection: Selection,
    done: Callable[[int, int], None],
) -> Merge:
    """The interference of a merge.

    Args:
        base: The base.
        chosen: The adapters by name: path or Hub id of each.
        selection: Which of their matrices are looked at.
        done: Called with matrices finished and in all.

    Raises:
        DeltaWError: A matrix cannot be read.
    """
    opened = [open_member(base, source, selection).pairs for source in chosen.values()]
    shapes = {key: pair.shape for pairs in opened for key, pair in pairs.items()}
    by_kind: dict[str, MergeSums] = {}
    for number, (key, shape) in enumerate(sorted(shapes.items(), key=lambda item: natural(item[0])), start=1):
        having = [pairs.get(key) for pairs in opened]
        values = [None if p is None or p.shape != shape else _value(p) for p in having]
        one = _sums(key, values, shape)
        kind = kind_of(key)
        for into in (ALL, kind):
            by_kind[into] = by_kind.get(into, MergeSums.zero(len(opened))).plus(one)
        done(number, len(shapes))
    kept = [k for kind, sums in by_kind.items() for k in _kept(tuple(chosen), kind, sums)]
    return Merge(tuple(chosen), tuple(_interference(k, s) for k, s in by_kind.items()), tuple(kept))


def _value(pair: Pair) -> Tensor | Factors | None:
    """ΔW or its factors, in float64; None where nothing changed.

    Raises:
        DeltaWError: It cannot be read.
    """
    import torch

    if is_update(pair.ft) and pair.ft.factored:
        value = pair.ft.delta(None)
        assert isinstance(value, Factors)
        return Factors(outputs(value.B, pair.view), value.A)
    found = difference(pair, torch.device("cpu")).value
    return found if found is None or isinstance(found, Factors) else found.double()


def _sums(name: str, values: Sequence[Tensor | Factors | None], shape: tuple[int, int]) -> MergeSums:
    """Of one matrix."""
    import torch

    gram = np.zeros((len(values), len(values)))
    there = [i for i, v in enumerate(values) if v is not None]
    for i in there:
        for j in there:
            if i <= j:
                gram[i, j] = gram[j, i] = inner(values[i], values[j])  # type: ignore[arg-type]
    rows, scale = _rows(name, shape)
    X = torch.stack([_some(v, rows, shape) for v in values])
    signs = X.sign()
    several = (signs != 0).sum(0) > 1
    differ = signs.amax(0) * signs.amin(0) < 0
    merged = (X.sum(0), ties(X))
    return MergeSums(
        gram,
        scale * X.square().sum((1, 2)).numpy(),
        scale * np.stack([(X.square() * (signs == M.sign())).sum((1, 2)).numpy() for M in merged]),
        scale * np.stack([(X * M).sum((1, 2)).numpy() for M in merged]),
        scale * float(several.sum()),
        scale * float((several & differ).sum()),
        1,
    )


def _rows(name: str, shape: tuple[int, int]) -> tuple[Tensor, float]:
    """Which rows of a matrix are looked at, and how many each stands for."""
    import torch

    m, n = shape
    count = min(m, max(1, ENTRIES // max(n, 1)))
    generator = seeded(torch.device("cpu"), name)
    rows = torch.randperm(m, generator=generator)[:count] if count < m else torch.arange(m)
    return rows, m / count


def _some(value: Tensor | Factors | None, rows: Tensor, shape: tuple[int, int]) -> Tensor:
    import torch

    if value is None:
        return torch.zeros(len(rows), shape[1], dtype=torch.float64)
    return value.B[rows] @ value.A if isinstance(value, Factors) else value[rows]


def ties(X: Tensor, density: float = DENSITY) -> Tensor:
    """TIES of some updates of one matrix.

    Args:
        X: (updates, rows, cols).
        density: The share of the entries of each that is kept, the largest.
    """
    import torch

    flat = X.abs().flatten(1).numpy()
    count = max(1, math.ceil(density * flat.shape[1]))
    edge = torch.from_numpy(np.partition(flat, flat.shape[1] - count, axis=1)[:, flat.shape[1] - count])
    trimmed = torch.where(X.abs() >= edge[:, None, None], X, 0)
    elected = trimmed.sum(0).sign()
    agreeing = (trimmed.sign() == elected) & (trimmed != 0)
    return (trimmed * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)


def _interference(kind: str, sums: MergeSums) -> Interference:
    total = float(np.trace(sums.gram))
    ratio = float(sums.gram.sum()) / total if total else math.nan
    differ = sums.differing / sums.shared if sums.shared else math.nan
    return Interference(kind, sums.matrices, ratio, differ)


def _kept(names: Sequence[str], kind: str, sums: MergeSums) -> list[MergeShare]:
    out = []
    for m, method in enumerate(METHODS):
        for i, name in enumerate(names):
            own, energy = float(sums.gram[i, i]), float(sums.energy[i])
            if not own or not energy:
                out.append(MergeShare(name, method, kind, math.nan, math.nan))
                continue
            exact = float(sums.gram[i].sum()) / own
            gain = exact if method == "sum" else float(sums.along[m, i]) / energy
            out.append(MergeShare(name, method, kind, min(1.0, float(sums.survived[m, i]) / energy), gain))
    return out
