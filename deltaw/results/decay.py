"""Is one common weight decay visible in a model's update? A robust answer from the rows of its analysis.

Decoupled decay shrinks every decayed tensor by the same share c, whatever it learnt besides. `shrinkage_kind` says
whether a matrix shrank uniformly and by more than anything else would shrink it (`deltaw.metrics.uniformity`); so do
its rows that moved straight towards zero, which training never touched. What one of them learnt adds to its c about
δ² − c², the energy that is not shrink: a turn adds half of it, pruning all. So the matrices that learnt least know c
best, and a matrix that learnt too much cannot tell. A decay is said to be seen where one c fits most of those that can.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deltaw.metrics.uniformity import are_witnesses, is_shrink
from deltaw.results.rows import is_matrix, number, text
from deltaw.types import Row, Vector

Mask = NDArray[np.bool_]

SIGMAS = 4.0  # of the spread that chance gives a matrix's c
LEARNT = 2.0  # of δ² − c²: how far learning may have moved it
SLACK = 0.1  # of c: nor does a matrix with a tiny spread have to agree to it; decay is not the last digit of c
MOST = 0.5  # of the matrices that can tell
FINEST = 1e-3  # of c: no interval is narrower on either side
MEAN = 0.1  # how far energy that is not shrink may be from that of a mean with unrelated weights
ALONE = 0.01  # of c: the spread of rows that moved by decay alone
NEARLY_ALL = 0.99  # of the rows: then it is the whole matrix
NAMED = 20  # exempt tensors that are listed by name

# A decay of less than half an ulp of every entry stores as no change, c < 2^−(p + 2) with p stored fraction bits; up to
# 1.54 times 2^−(p + 1) nearly all entries move by one ulp, and c cannot be told from c within that range.
FRACTIONS = {"bfloat16": 7, "float16": 10, "float8_e4m3fn": 3, "float8_e5m2": 2}
STEP = 1.536  # .006 for bfloat16


@dataclass(frozen=True)
class Gate:
    """Whether the stored precision could hide a decay.

    Attributes:
        dtype: The coarsest one.
        threshold: A decay below it stores as no change.
        step: A decay between `threshold` and this one stores as one ulp, whatever it was.
        tensors: How many are stored so coarsely.
        in_the_way: Whether that may be why no decay is seen.
    """

    dtype: str = ""
    threshold: float = math.nan
    step: float = math.nan
    tensors: int = 0
    in_the_way: bool = False


@dataclass(frozen=True)
class Decay:
    """Whether one decay is visible, how large it is, who shows it and who is exempt.

    Attributes:
        visible: Whether one common c is seen.
        value: That c; NaN where none is visible.
        low, high: The interval of c; where all that is seen is a step of the stored precision, the range that it stands
            for; else NaN.
        evidence: `tensors`; `rows`, where only rows that training never touched show it; `step`, where entries moved
            by one ulp; `none`.
        informative, agree, exempt: How many matrices could tell c from none, agree with it, agree with none.
        exempt_tensors: The first of those.
        rows_estimate, rows_tensors: The decay of such rows, and in how many tensors.
        rows_embeddings: Whether all of those are embeddings.
        like_mean: Whether the rest of the update is as large as c in every matrix, as in a mean with other weights.
        instead, instead_tensors: Where none is visible, what most matrices show that are nearer to zero than W0: a
            word of `shrinkage_kind`; and how many.
        gate: Whether the stored precision could hide one.
    """

    visible: bool = False
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    evidence: str = "none"
    informative: int = 0
    agree: int = 0
    exempt: int = 0
    exempt_tensors: tuple[str, ...] = ()
    rows_estimate: float = math.nan
    rows_tensors: int = 0
    rows_embeddings: bool = False
    like_mean: bool = False
    instead: str = ""
    instead_tensors: int = 0
    gate: Gate = Gate()


@dataclass(frozen=True)
class MatrixShrinkages:
    """What the changed matrices show, one entry each.

    Attributes:
        names: Of the tensors.
        embedding: Whether it is one.
        c, rest: The shrink and the other energy, δ² − c², both in units of W0.
        unlearnt: The shrink of what training left alone, where that is known; else c.
        entries: m·n.
        uniform: Whether it passes for a decay.
        rows_c, rows_spread: The decay of the rows that training never touched and its spread; NaN where they do not
            pass for decayed, or where the whole matrix knows better.
    """

    names: tuple[str, ...]
    embedding: Mask
    c: Vector
    unlearnt: Vector
    rest: Vector
    entries: Vector
    uniform: Mask
    rows_c: Vector
    rows_spread: Vector

    @property
    def sd(self) -> Vector:
        """The spread that chance would give c."""
        return np.sqrt(self.rest / self.entries)

    @property
    def learnt(self) -> Vector:
        """How far learning may have moved c."""
        return LEARNT * self.rest + np.abs(self.unlearnt - self.c)

    @property
    def reach(self) -> Vector:
        """How far a whole matrix may be from the decay."""
        return SIGMAS * self.sd + self.learnt

    @property
    def from_rows(self) -> Mask:
        """Where rows show a decay that the whole matrix does not."""
        return np.isfinite(self.rows_c)

    def can_tell(self, c: float) -> Mask:
        """Which matrices would pass for decayed had they decayed by c."""
        change = np.sqrt(self.rest + c * c)
        told = [is_shrink(c, float(d), float(n)) for d, n in zip(change, self.entries, strict=True)]
        return np.array(told, dtype=bool) | self.from_rows

    def agree(self, c: float) -> Mask:
        """Which matrices, or rows of them, show the decay c."""
        whole = self.uniform & (np.abs(self.unlearnt - c) <= self.reach + SLACK * c)
        rows = self.from_rows & (np.abs(self.rows_c - c) <= self.rows_spread + SLACK * c)
        return whole | rows

    def exempt(self, c: float) -> Mask:
        """Which matrices show no decay although they could tell c."""
        return self.can_tell(c) & ~self.agree(c) & (np.abs(self.c) <= self.reach + SLACK * c)

    def is_nearer(self, c: float) -> bool:
        """Whether most matrices are nearer to c than to none, also those that learnt too much to tell alone."""
        clear = 2 * SIGMAS * self.sd < c
        return not clear.any() or bool(np.mean(self.c[clear] > c / 2) > MOST)


def summarize_decay(rows: Sequence[Row]) -> Decay:
    """Whether one decay is visible in the rows of an analysis."""
    changed = [row for row in rows if is_matrix(row) and number(row, "relative_change") > 0]
    seen = _shrinks(changed)
    c = _common(seen)
    if not math.isfinite(c):
        return _invisible(changed)
    able, agree, exempt = seen.can_tell(c), seen.agree(c), seen.exempt(c)
    rows_only = not (agree & seen.uniform).any()
    if not agree.sum() > MOST * (able | agree).sum() or not (rows_only or seen.is_nearer(c)):
        return _invisible(changed)
    low, high = _interval(seen, agree, c, changed)
    from_rows = agree & seen.from_rows
    return Decay(
        visible=True,
        value=c,
        low=low,
        high=high,
        evidence="rows" if rows_only else "tensors",
        informative=int((able | agree).sum()),
        agree=int(agree.sum()),
        exempt=int(exempt.sum()),
        exempt_tensors=tuple(seen.names[i] for i in np.flatnonzero(exempt)[:NAMED]),
        rows_estimate=_median(seen.rows_c[from_rows]),
        rows_tensors=int(from_rows.sum()),
        rows_embeddings=bool(from_rows.any() and seen.embedding[from_rows].all()),
        like_mean=_like_mean(seen, agree),
        gate=_gate(changed, c),
    )


def sharing(rows: Sequence[Row], decay: Decay) -> frozenset[str]:
    """The tensors that share a visible decay: those that show it, and those that learnt too much to tell but fit it.

    Args:
        rows: Of the analysis that `decay` sums up.
        decay: A visible one.
    """
    changed = [row for row in rows if is_matrix(row) and number(row, "relative_change") > 0]
    seen, c = _shrinks(changed), decay.value
    fits = (np.abs(seen.c - c) <= seen.reach + SLACK * c) & (seen.c > c / 2) & ~seen.exempt(c)
    return frozenset(seen.names[i] for i in np.flatnonzero(seen.agree(c) | fits))


def _shrinks(changed: Sequence[Row]) -> MatrixShrinkages:
    def column(name: str) -> Vector:
        return np.array([number(row, name) for row in changed], dtype=np.float64)

    c, change, bulk = column("shrinkage"), column("relative_change"), column("shrinkage_bulk")
    uniform = np.array([text(row, "shrinkage_kind") == "uniform" for row in changed], dtype=bool)
    by_rows = np.array([_by_rows(row) for row in changed], dtype=bool)
    # rows that moved by nothing else know it best, unless there are no others
    alone = column("decay_rows_spread") < ALONE * column("decay_estimate")
    by_rows &= ~uniform | (alone & (column("decay_rows_fraction") < NEARLY_ALL))
    return MatrixShrinkages(
        names=tuple(text(row, "name") for row in changed),
        embedding=np.array([text(row, "kind") == "embedding" for row in changed], dtype=bool),
        c=c,
        unlearnt=np.where(np.isfinite(bulk), bulk, c),
        rest=np.maximum(0.0, change**2 - c**2),
        entries=column("rows") * column("cols"),
        uniform=uniform & ~by_rows,
        rows_c=np.where(by_rows, column("decay_estimate"), math.nan),
        rows_spread=np.where(by_rows, column("decay_rows_spread"), math.nan),
    )


def _by_rows(row: Row) -> bool:
    share = number(row, "decay_rows_fraction")
    enough = math.isfinite(share) and are_witnesses(share, number(row, "rows"), number(row, "cols"))
    return enough and text(row, "decay_rows_kind") == "uniform"


def _common(seen: MatrixShrinkages) -> float:
    """The c of what passes for decayed: the weighted median, in which what learnt least counts most."""
    values = np.concatenate([seen.unlearnt[seen.uniform], seen.rows_c[seen.from_rows]])
    reach = np.concatenate([seen.reach[seen.uniform], seen.rows_spread[seen.from_rows]])
    if not values.size:
        return math.nan
    order = np.argsort(values)
    weights = np.cumsum(((reach + FINEST * values) ** -2)[order])
    return float(values[order][np.searchsorted(weights, weights[-1] / 2)])


def _interval(seen: MatrixShrinkages, agree: Mask, c: float, changed: Iterable[Row]) -> tuple[float, float]:
    """As far as the best of those that agree may be off, and as far as they stand apart."""
    whole = agree & seen.uniform
    values = np.concatenate([seen.unlearnt[whole], seen.rows_c[agree & seen.from_rows]])
    reach = np.concatenate([(2 * seen.sd + seen.learnt)[whole], seen.rows_spread[agree & seen.from_rows]])
    weights = (reach + FINEST * values) ** -2
    off = float(np.average(reach, weights=weights))
    apart = math.sqrt(float(np.average((values - c) ** 2, weights=weights)))
    coarsest = max((_threshold(row) for row in changed), default=0.0)
    half = max(off, 2 * apart) + coarsest / 4 + FINEST * c  # rounding moves what is read by up to 2^−(p + 4)
    return max(0.0, c - half), c + half


def _like_mean(seen: MatrixShrinkages, agree: Mask) -> bool:
    """(1 − f)·W0 + f·U has c = f, and as much other energy where ‖U‖ = ‖W0‖; learning has no reason to."""
    whole = agree & seen.uniform
    return bool(whole.any() and (np.abs(np.sqrt(seen.rest[whole]) - seen.c[whole]) <= MEAN * seen.c[whole]).all())


def _median(values: Vector) -> float:
    return float(np.median(values)) if values.size else math.nan


def _invisible(changed: Sequence[Row]) -> Decay:
    """No decay is visible; but that may be the fault of the storage, and a step of it a decay within a range."""
    gate = _gate(changed, math.nan)
    found = Counter(word for row in changed if (word := text(row, "shrinkage_kind")) not in ("", "uniform"))
    kind, count = found.most_common(1)[0] if found else ("", 0)
    if count <= MOST * len(changed):
        return Decay(gate=gate)
    if kind == "step":
        low, high = gate.threshold, gate.step
        return Decay(low=low, high=high, evidence=kind, informative=len(changed), agree=count, gate=gate)
    return Decay(instead=kind, instead_tensors=count, gate=gate)


def _precision(row: Row) -> str:
    return text(row, "ft_precision") or text(row, "ft_dtype")


def _threshold(row: Row) -> float:
    fraction = FRACTIONS.get(_precision(row))
    return 0.0 if fraction is None else 2.0 ** -(fraction + 2)


def _gate(changed: Iterable[Row], common: float) -> Gate:
    """Whether the stored precision could hide the decay: the coarsest one of the matrices."""
    gated = [p for row in changed if (p := _precision(row)) in FRACTIONS]
    if not gated:
        return Gate()
    coarsest = min(gated, key=FRACTIONS.__getitem__)
    threshold = 2.0 ** -(FRACTIONS[coarsest] + 2)
    # also where no decay is visible at all
    return Gate(coarsest, threshold, STEP * 2 * threshold, len(gated), in_the_way=not common >= threshold)
