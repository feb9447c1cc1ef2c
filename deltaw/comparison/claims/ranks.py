"""Claims about the update of full fine-tuning: its rank, how that grows, and where it is high.

Each rests on one number for each run, a median over the matrices that all runs of the comparison have: matrices that
do not stand above their rounding in one of them are left out of all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltaw.comparison.claims.evidence import Found, claim
from deltaw.comparison.claims.sources import BIDERMAN
from deltaw.comparison.claims.verdicts import Claim, ClaimEvidence
from deltaw.comparison.roles import Arena
from deltaw.comparison.runs import Array, Run, Runs
from deltaw.comparison.trajectories import Trajectory, curves
from deltaw.comparison.welch import Estimate, GroupShare, combination
from deltaw.types import counted

Chosen = NDArray[np.bool_]

RANK = "rank_90"
TYPICAL_RANK = 16
TIMES = (10.0, 100.0)
LINEAR = ("attention", "mlp")
NO_FULL = "needs an analysed run of full fine-tuning whose update stands above its rounding noise"
SEEDS = "Student's t over seeds at 5 %, Holm over the comparisons"


def of_arena(runs: Runs, a: Arena) -> Iterator[Claim]:
    """The claims about the weights of plain full fine-tuning."""
    full = [r for r in runs.representatives(a.full) if r.layers is not None] if a.full is not None else []
    yield _many_times(runs, a, full)
    yield _grows(runs, a)
    yield _mlp_above(runs, a, full)
    yield _ends_lower(runs, a, full)


def _ranks(runs: Runs, replicates: Sequence[Run]) -> Array:
    """(runs, layers) of the rank; NaN where some run has none above its rounding, or no update at all."""
    values = runs.table.metric(RANK, replicates)
    if not values.size:
        return np.full((len(replicates), len(runs.table.keys)), math.nan)
    return np.where((np.isfinite(values) & (values > 0)).all(0), values, math.nan)


def _null(runs: Runs, replicates: Sequence[Run]) -> Array:
    """(layers,) of the rank that pure noise of each matrix's shape has; NaN where it is not known."""
    out = np.full(len(runs.table.keys), math.nan)
    at = {k: i for i, k in enumerate(runs.table.keys)}
    for r in replicates:
        assert r.layers is not None
        if f"{RANK}_null" in r.layers.columns:
            out[[at[str(k)] for k in r.layers.index]] = r.layers[f"{RANK}_null"].to_numpy(dtype=np.float64)
    return out


def _linear(runs: Runs) -> Chosen:
    return np.isin(np.array(runs.table.kind), LINEAR)


def _over_seeds(values: Sequence[float] | Array, minus: float = 0.0) -> Estimate:
    """The mean over runs, less a number."""
    return combination([GroupShare(1.0, values)], -minus)


def _medians(values: Array) -> Array:
    """The median over layers of each run; NaN where there is none."""
    known = np.isfinite(values).all(0)
    return np.median(values[:, known], axis=1) if known.any() else np.full(len(values), math.nan)


def _many_times(runs: Runs, a: Arena, full: Sequence[Run]) -> Claim:
    rule = (
        f"ln(median {RANK} over attention and MLP matrices) of each run, against the median rank of the LoRA groups "
        f"(else {TYPICAL_RANK}). For: above ln 10 and below ln 100 times it, {SEEDS}; against: beyond one of them. "
        "Matrices with fewer than ten times that many singular values cannot show it. Where pure noise of these "
        "shapes would satisfy it too, that is said."
    )
    text = "ΔW of full fine-tuning has a rank 10 to 100 times that of typical LoRA"
    return claim("full-rank-10-to-100-times", text, rule, a, [_times(runs, a, full)], NO_FULL, BIDERMAN)


def _times(runs: Runs, a: Arena, full: Sequence[Run]) -> Found:
    values = _ranks(runs, full)[:, _linear(runs)]
    medians = _medians(values)
    if not len(medians) or not np.isfinite(medians).all():
        return None
    ranks = [r for r, _ in a.lora if r]
    typical = float(np.median(ranks)) if ranks else float(TYPICAL_RANK)
    widest = _width(full)
    if widest < TIMES[0] * typical:
        return f"the matrices have {widest:.0f} singular values, fewer than 10 × {typical:g}"
    low, high = (math.log(t) for t in TIMES)
    times = _over_seeds(np.log(medians / typical))
    bounds = [replace(times, value=times.value - low), replace(times.negated(), value=high - times.value)]
    known = np.isfinite(values).all(0)
    null = float(np.nanmedian(_null(runs, full)[_linear(runs)][known])) / typical
    noise = f"pure noise of these shapes × {null:.3g}"
    as_noise = f", as pure noise of these shapes would (× {null:.3g})" if TIMES[0] <= null <= TIMES[1] else f"; {noise}"
    beside = as_noise if math.isfinite(null) else ""
    note = f" of rank {typical:g} (median {RANK} {float(np.exp(np.log(medians).mean())):.3g}){beside}"
    return ClaimEvidence(str(a.full), times, bounds, scale="ratio", note=note, lines=(low, high))


def _width(replicates: Sequence[Run]) -> float:
    """The median number of singular values of the linear layers."""
    layers: Any = replicates[0].layers
    linear = layers[layers["kind"].isin(LINEAR)]
    return float(np.median(np.minimum(linear["rows"], linear["cols"])))


def _grows(runs: Runs, a: Arena) -> Claim:
    rule = (
        f"Per seed ln({RANK} at the last tokens / at the first), medians over the matrices that stand above their "
        f"rounding at every point of every seed. For: above 0, {SEEDS}."
    )
    found = [_growth(runs, curve) for curve in curves(runs) if curve.group == a.full]
    text = "The rank of full fine-tuning's update grows with tokens"
    missing = "needs analysed runs of full fine-tuning at two or more numbers of tokens"
    return claim("rank-grows-with-tokens", text, rule, a, found, missing, BIDERMAN)


def _growth(runs: Runs, curve: Trajectory) -> Found:
    """How much the rank grew from the first point of a curve to the last, over one and the same set of matrices."""
    analysed = [(tokens, [r for r in rs if r.layers is not None]) for tokens, rs in curve.points]
    analysed = [(tokens, rs) for tokens, rs in analysed if rs]
    if len(analysed) < 2:
        return None
    everywhere = _ranks(runs, [r for _, rs in analysed for r in rs])
    known: Chosen = np.asarray(np.isfinite(everywhere).all(axis=0))
    if not known.any():
        return f"no matrix of {curve.group} stands above its rounding at every number of tokens"
    (first, before), (last, after) = analysed[0], analysed[-1]
    start, end = ({_seed(r, i): v for i, (r, v) in enumerate(_with_rank(runs, rs, known))} for rs in (before, after))
    growth = [math.log(end[s] / start[s]) for s in end if s in start]
    if not growth:
        return f"no seed of {curve.group} has both the first and the last number of tokens"
    where = f"{curve.group}{', ' + curve.setting if curve.setting else ''}, {first:,} to {last:,} tokens"
    note = f" over {counted(int(known.sum()), 'matrix', 'matrices')}"
    return ClaimEvidence(where, _over_seeds(growth), scale="ratio", note=note)


def _with_rank(runs: Runs, replicates: Sequence[Run], known: Chosen) -> list[tuple[Run, float]]:
    values = runs.table.metric(RANK, replicates)[:, known]
    return [(r, float(np.median(v))) for r, v in zip(replicates, values, strict=True)]


def _seed(run: Run, position: int) -> int:
    return position if run.spec.seed is None else run.spec.seed


def _mlp_above(runs: Runs, a: Arena, full: Sequence[Run]) -> Claim:
    rule = (
        f"Per block, ln(median {RANK} of its MLP matrices / that of its attention matrices); median over blocks, one "
        f"number for each run. For: above 0, {SEEDS}. Part of it is shape: that of pure noise is given."
    )
    text = "The rank is higher in MLP than in attention matrices"
    return claim("mlp-above-attention", text, rule, a, [_mlp(runs, a, full)], NO_FULL, BIDERMAN)


def _mlp(runs: Runs, a: Arena, full: Sequence[Run]) -> Found:
    values = _ranks(runs, full)
    ratio, n = _by_block(runs, np.log(values))
    if not n:
        return None
    known = np.isfinite(values).all(0)
    null = np.where(known, np.log(_null(runs, full)), math.nan)
    shape = float(_by_block(runs, null[None, :])[0][0])
    estimate = _over_seeds(ratio)
    beside = ""
    if math.isfinite(shape):
        same = shape * estimate.value > 0
        beside = f", as pure noise of these shapes would (× {math.exp(shape):.3g})" if same else ""
        beside += f"; relative to that × {math.exp(estimate.value - shape):.3g}"
    return ClaimEvidence(f"{a.full}, MLP / attention", estimate, scale="ratio", note=f" over {n} blocks{beside}")


def _by_block(runs: Runs, logs: Array) -> tuple[Array, int]:
    """(runs,) of the median over blocks of MLP − attention, each a median over matrices; and how many blocks."""
    kinds, block = np.array(runs.table.kind), runs.table.block
    differences = []
    for b in np.unique(block[np.isfinite(block)]):
        mlp, attention = (_medians(logs[:, (block == b) & (kinds == kind)]) for kind in ("mlp", "attention"))
        if np.isfinite(mlp - attention).all():
            differences.append(mlp - attention)
    if not differences:
        return np.full(len(logs), math.nan), 0
    return np.median(np.stack(differences, axis=1), axis=1), len(differences)


def _ends_lower(runs: Runs, a: Arena, full: Sequence[Run]) -> Claim:
    rule = (
        f"For each module, ln({RANK} in the first or in the last block / median of the blocks between); median over "
        f"modules, one number for each run. For: below 0 at the first and at the last, {SEEDS}; needs four blocks."
    )
    found: list[Found] = []
    for which, position in (("first", 0), ("last", -1)):
        values, n = _end(runs, np.log(_ranks(runs, full)), position)
        if n:
            lower = _over_seeds(values)
            what = f"{a.full}, {which} block / middle"
            found.append(
                ClaimEvidence(what, lower, [lower.negated()], scale="ratio", note=f" over {counted(n, 'module')}")
            )
    text = "The rank is lower in the first and last layers"
    missing = f"{NO_FULL}, with four blocks or more"
    return replace(claim("first-and-last-lower", text, rule, a, found, missing, BIDERMAN), needs_all=True)


def _end(runs: Runs, logs: Array, which: int) -> tuple[Array, int]:
    """(runs,) of the median over modules of one end − the blocks between; and how many modules."""
    module, block = np.array(runs.table.module), runs.table.block
    inside = _linear(runs) & np.isfinite(block)
    blocks = np.unique(block[inside])
    if len(blocks) < 4 or not len(logs):
        return np.zeros(0), 0
    differences = []
    for m in np.unique(module[inside]):
        mine = inside & (module == m)
        end = _medians(logs[:, mine & (block == blocks[which])])
        between = _medians(logs[:, mine & (block > blocks[0]) & (block < blocks[-1])])
        if np.isfinite(end - between).all():
            differences.append(end - between)
    return (np.median(np.stack(differences, axis=1), axis=1), len(differences)) if differences else (np.zeros(0), 0)
