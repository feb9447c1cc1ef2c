"""Is one common weight decay visible in a model's update? A robust answer from the rows of its analysis.

Decoupled decay shrinks every decayed tensor by the same share c, whatever it learnt besides. Each tensor shows
c_i = −⟨ΔW, W0⟩/‖W0‖² with a spread of about relative_change/√(mn). So the question is whether one c > 0 explains
many tensors that could have told it from zero. Rows of an embedding that training never saw answer it alone: they
moved by the decay and by nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deltaw.results.rows import number, text
from deltaw.types import Row, Vector

Mask = NDArray[np.bool_]

SIGMAS = 3.0  # of a tensor's own spread: what counts as agreement
SLACK = 0.1  # of c: nor does a tensor with a tiny spread have to agree to it; decay is not the last digit of c
ROWS = 0.1  # share of decayed rows from which an embedding is a witness
COLS = 8  # … if its rows are that long: the cosine of two numbers is always ±1
AGREE = 5  # tensors, and half of the informative ones: fewer agree by accident
CANDIDATES = 200  # values of c that are tried
HALF = 0.6745  # the median of |x| for x of a standard normal law
NAMED = 20  # exempt tensors that are listed by name

# A decay of less than half an ulp of every entry stores as no change: c < 2^−(p + 2), p stored fraction bits.
GATES = {"bfloat16": 2.0**-9, "float16": 2.0**-12, "float8_e4m3fn": 2.0**-5, "float8_e5m2": 2.0**-4}


class Shrinks(NamedTuple):
    """What the tensors show: c of each, and how far chance alone would spread it."""

    names: list[str]
    c: Vector
    sd: Vector

    def tell(self, c: float) -> tuple[Mask, Mask, Mask]:
        """Which tensors can tell a decay c from none and from twice c; which of those agree with c; which with none.

        An update that learnt something is no random direction: the tensors spread more than `sd`. How much more is
        read from the tensors themselves, as their median distance from the nearer of the two answers.
        """
        miss = np.minimum(np.abs(self.c - c), np.abs(self.c))
        inflation = max(1.0, float(np.median(miss / self.sd)) / HALF) if miss.size else 1.0
        reach = SIGMAS * inflation * self.sd
        informative = 2 * reach < c
        slack = np.maximum(reach, SLACK * c)
        agree = informative & (np.abs(self.c - c) <= slack)
        return informative, agree, informative & ~agree & (np.abs(self.c) <= slack)


@dataclass(frozen=True)
class Gate:
    """Whether the stored dtype could hide a decay.

    Attributes:
        dtype: The coarsest one.
        threshold: A decay below it stores as no change.
        tensors: How many are stored so coarsely.
        in_the_way: Whether that may be why no decay is seen.
    """

    dtype: str = ""
    threshold: float = math.nan
    tensors: int = 0
    in_the_way: bool = False


@dataclass(frozen=True)
class Decay:
    """Whether one decay is visible, how large it is, who shows it and who is exempt.

    Attributes:
        visible: Whether one common c is seen.
        value: That c; NaN where none is visible.
        evidence: `rows`, `tensors` or `none`.
        informative, agree, exempt: How many tensors could tell c from 0, agree with it, agree with 0.
        exempt_tensors: The first of those.
        rows_estimate, rows_tensors: The decay read from rows never seen in training, and in how many tensors.
        gate: Whether the stored dtype could hide one.
    """

    visible: bool = False
    value: float = math.nan
    evidence: str = "none"
    informative: int = 0
    agree: int = 0
    exempt: int = 0
    exempt_tensors: tuple[str, ...] = ()
    rows_estimate: float = math.nan
    rows_tensors: int = 0
    gate: Gate = Gate()


def summarize_decay(rows: Sequence[Row]) -> Decay:
    """Whether one decay is visible in the rows of an analysis."""
    seen = _shrinks(rows)
    from_rows, witnesses = _from_rows(rows)
    from_tensors = _consensus(seen)
    common = from_rows if math.isfinite(from_rows) else from_tensors
    informative, agree, exempt = seen.tell(common)
    return Decay(
        visible=math.isfinite(common),
        value=common,
        evidence="rows" if math.isfinite(from_rows) else "tensors" if math.isfinite(from_tensors) else "none",
        informative=int(informative.sum()),
        agree=int(agree.sum()),
        exempt=int(exempt.sum()),
        exempt_tensors=tuple(seen.names[i] for i in np.flatnonzero(exempt)[:NAMED]),
        rows_estimate=from_rows,
        rows_tensors=witnesses,
        gate=_gate(rows, common),
    )


def _shrinks(rows: Iterable[Row]) -> Shrinks:
    found = []
    for row in rows:
        c, z = number(row, "shrinkage"), number(row, "shrinkage_z")
        if math.isfinite(c) and math.isfinite(z) and z != 0:  # z = c/sd; empty where nothing changed
            found.append((text(row, "name"), c, c / z))
    return Shrinks([f[0] for f in found], np.array([f[1] for f in found]), np.array([f[2] for f in found]))


def _from_rows(rows: Iterable[Row]) -> tuple[float, int]:
    """The decay of rows that training never saw: the median over tensors, weighted by how many such rows they have."""
    found = []
    for row in rows:
        share, c = number(row, "decay_rows_fraction"), number(row, "decay_estimate")
        enough = share * number(row, "rows") >= AGREE and number(row, "cols") >= COLS
        if share >= ROWS and c > 0 and enough:
            found.append((c, share * number(row, "rows")))
    if not found:
        return math.nan, 0
    return _weighted_median(*(np.array(x) for x in zip(*found, strict=True))), len(found)


def _consensus(seen: Shrinks) -> float:
    """The c > 0 with which most tensors agree that could tell it from 0; NaN where too few do."""
    best, common = 0, math.nan
    candidates = np.sort(seen.c[seen.c > SIGMAS * seen.sd])
    for candidate in candidates[:: max(1, candidates.size // CANDIDATES)]:
        _, agree, _ = seen.tell(float(candidate))
        if not agree.any():
            continue
        refined = _weighted_median(seen.c[agree], 1 / seen.sd[agree])
        informative, agree, _ = seen.tell(refined)
        n = int(agree.sum())
        if n > best and n >= max(AGREE, informative.sum() / 2):
            best, common = n, refined
    return common


def _weighted_median(values: Vector, weights: Vector) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def _gate(rows: Iterable[Row], common: float) -> Gate:
    """Whether the stored dtype could hide the decay: the coarsest one of the tensors that have a W0."""
    stored = [text(row, "ft_dtype") for row in rows if math.isfinite(number(row, "base_fro_norm"))]
    gated = [d for d in stored if d in GATES]
    coarsest = max(gated, key=GATES.__getitem__, default="")
    threshold = GATES.get(coarsest, math.nan)
    hidden = bool(gated) and not common >= threshold  # also where no decay is visible at all
    return Gate(dtype=coarsest, threshold=threshold, tensors=len(gated), in_the_way=hidden)
