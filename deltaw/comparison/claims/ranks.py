"""Claims about the update itself: its rank, how that grows, and where it is high."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from deltaw.comparison import statistics
from deltaw.comparison.claims.verdicts import BIDERMAN, Claim, Evidence, show
from deltaw.comparison.roles import Arena
from deltaw.comparison.runs import Array, Run, Runs
from deltaw.comparison.trajectories import curves, value_of
from deltaw.types import Interval

if TYPE_CHECKING:
    import pandas as pd

TYPICAL_RANK = 16
TIMES = (10.0, 100.0)
LINEAR = ("attention", "mlp")


def of_arena(runs: Runs, a: Arena, trajectories: pd.DataFrame) -> Iterator[Claim]:
    """The claims about the weights of plain full fine-tuning."""
    yield _many_times(runs, a)
    yield _grows(runs, a)
    yield _mlp_above(runs, a)
    yield _ends_lower(runs, a)


def _claim(name: str, text: str, rule: str, a: Arena, evidence: list[Evidence], missing: str) -> Claim:
    return Claim(name, text, BIDERMAN, rule, a.label, evidence, "" if evidence else f"Cannot be checked: {missing}.")


def _ranks(runs: Runs, group: str, kinds: tuple[str, ...] = LINEAR) -> Array:
    """(seeds, layers) of rank_90 in the linear layers; what is mostly rounding has no rank worth a claim."""
    replicates = [r for r in runs.representatives(group) if r.layers is not None]
    values = runs.table.metric("rank_90", replicates)
    if not values.size:
        return values
    chosen = np.isin(np.array(runs.table.kind), kinds)
    return np.where(_resolved(runs, replicates), values, math.nan)[:, chosen]


def _resolved(runs: Runs, replicates: list[Run]) -> np.ndarray:
    """(runs, layers): whether ΔW stands above its rounding noise (and is not zero)."""
    out = np.zeros((len(replicates), len(runs.table.keys)), dtype=bool)
    at = {k: i for i, k in enumerate(runs.table.keys)}
    for i, r in enumerate(replicates):
        assert r.layers is not None
        words = r.layers["resolution"] if "resolution" in r.layers.columns else ["resolved"] * len(r.layers)
        for key, word in zip(r.layers.index, words, strict=True):
            out[i, at[str(key)]] = word == "resolved"
    return out


NO_FULL = "needs an analysed run of full fine-tuning whose update stands above its rounding noise"


def _many_times(runs: Runs, a: Arena) -> Claim:
    name, text = "full-rank-10-to-100-times", "ΔW of full fine-tuning has a rank 10 to 100 times that of typical LoRA"
    rule = (
        f"Median rank_90 over attention and MLP matrices, over the median rank of the LoRA groups (else "
        f"{TYPICAL_RANK}). For: the interval lies within [10, 100]; against: wholly outside. Matrices with fewer than "
        "ten times that many singular values cannot show it."
    )
    values = _ranks(runs, a.full) if a.full else np.zeros((0, 0))
    interval, _ = statistics.median_interval(values, seed=runs.seed)
    if not math.isfinite(interval.value) or interval.value <= 0:
        return _claim(name, text, rule, a, [], NO_FULL)
    ranks = [r for r, _ in a.lora if r]
    typical = float(np.median(ranks)) if ranks else float(TYPICAL_RANK)
    widest = _width(runs, a.full)
    if widest < TIMES[0] * typical:
        return _claim(
            name, text, rule, a, [], f"the matrices have {widest:.0f} singular values, less than 10 × {typical:g}"
        )
    times = Interval(*(v / typical for v in interval))
    null = runs.table.metric("rank_90_ratio", runs.representatives(a.full or ""))
    beside = f"; {np.nanmedian(null):.2f} of what pure noise has" if null.size and np.isfinite(null).any() else ""
    shown = f"rank_90 {show(interval)}, {show(times)} times rank {typical:g}{beside}"
    return _claim(name, text, rule, a, [Evidence(f"{a.full}", _inside(times, *TIMES), 0.0, shown)], "")


def _width(runs: Runs, group: str | None) -> float:
    """The median number of singular values of the linear layers of a group."""
    run = next(r for r in runs.representatives(group or "") if r.layers is not None)
    assert run.layers is not None
    linear = run.layers[run.layers["kind"].isin(LINEAR)]
    return float(np.median(np.minimum(linear["rows"], linear["cols"])))


def _inside(x: Interval, low: float, high: float) -> Interval:
    """How far inside [low, high] something is, on the log scale: positive if the whole interval is inside."""
    inner = [min(math.log(v / low), math.log(high / v)) for v in x if v > 0]
    if len(inner) < 3:
        return Interval(inner[0] if inner else math.nan, math.nan, math.nan)
    best = math.log(high / low) / 2 if x.low <= math.sqrt(low * high) <= x.high else max(inner)
    return Interval(inner[0], min(inner), best)


def _grows(runs: Runs, a: Arena) -> Claim:
    name, text = "rank-grows-with-tokens", "The rank of full fine-tuning's update grows with tokens"
    rule = (
        "Per seed, ln(rank_90 at the last tokens / at the first), medians over layers. For: Student's 95 % interval "
        "over seeds lies above 0; one seed: a growth of more than 5 %."
    )
    evidence = []
    for (group, curve), points in curves(runs).items():
        if group != a.full:
            continue
        (first, before), (last, after) = points[0], points[-1]
        start = {r.spec.seed: value_of(runs, r, "rank_90") for r in before}
        growth = [
            math.log(v / start[r.spec.seed])
            for r in after
            if (v := value_of(runs, r, "rank_90")) > 0 and start.get(r.spec.seed, 0) > 0
        ]
        if growth:
            interval = statistics.mean_interval(growth)
            shown = f"× {show(Interval(*(math.exp(min(x, 700)) for x in interval)))}"
            where = f"{group}{', ' + curve if curve else ''}, {first:,} to {last:,} tokens"
            evidence.append(Evidence(where, interval, math.log(1.05), shown))
    missing = "needs analysed runs of full fine-tuning at two or more numbers of tokens"
    return _claim(name, text, rule, a, evidence, missing)


def _mlp_above(runs: Runs, a: Arena) -> Claim:
    name, text = "mlp-above-attention", "The rank is higher in MLP than in attention matrices"
    rule = (
        "Per block, the median rank_90 of its MLP matrices over that of its attention matrices; median ratio over "
        "blocks. For: the interval lies above 1. Part of it is shape: the same ratio is given relative to pure noise."
    )
    evidence = []
    for metric, what in (("rank_90", "rank_90"),):
        mlp, attention = (_by_block(runs, a, metric, kind) for kind in ("mlp", "attention"))
        if mlp.size and attention.size:
            c = statistics.contrast(mlp, attention, seed=runs.seed, p_value=math.nan)
            relative = statistics.contrast(
                _by_block(runs, a, "rank_90_ratio", "mlp"),
                _by_block(runs, a, "rank_90_ratio", "attention"),
                seed=runs.seed,
                p_value=math.nan,
            )
            ratio = Interval(c.median_ratio, c.ratio_low, c.ratio_high)
            shape = Interval(relative.median_ratio, relative.ratio_low, relative.ratio_high)
            shown = f"× {show(ratio)} over {c.n_layers} blocks; relative to noise of each shape × {show(shape)}"
            if math.isfinite(c.median_ratio) and c.ratio_low > 0:
                evidence.append(Evidence(f"{a.full}, {what}, MLP / attention", _log(ratio), 0.0, shown))
    return _claim(name, text, rule, a, evidence, NO_FULL)


def _by_block(runs: Runs, a: Arena, metric: str, kind: str) -> Array:
    """(seeds, blocks): the median of a metric over the matrices of one kind in each block."""
    if a.full is None:
        return np.zeros((0, 0))
    replicates = [r for r in runs.representatives(a.full) if r.layers is not None]
    values = runs.table.metric(metric, replicates)
    if not values.size:
        return np.zeros((0, 0))
    values = np.where(_resolved(runs, replicates), values, math.nan)
    kinds, block = np.array(runs.table.kind), runs.table.block
    columns = []
    for b in np.unique(block[np.isfinite(block)]):
        chosen = values[:, (block == b) & (kinds == kind)]
        columns.append(_row_medians(chosen))
    return np.stack(columns, axis=1) if columns else np.zeros((0, 0))


def _row_medians(values: Array) -> Array:
    known = [row[np.isfinite(row)] for row in values]
    return np.array([float(np.median(row)) if row.size else math.nan for row in known])


def _ends_lower(runs: Runs, a: Arena) -> Claim:
    name, text = "first-and-last-lower", "The rank is lower in the first and last layers"
    rule = (
        "For each module, rank_90 in the first and in the last block over the median of the blocks between; median "
        "ratio over modules, for each end. For: an interval lies below 1 and none above; needs four blocks."
    )
    ends = {"first": _end(runs, a, 0), "last": _end(runs, a, -1)}
    evidence = []
    for which, (end, middle) in ends.items():
        if not end.size:
            continue
        c = statistics.contrast(end, middle, seed=runs.seed, p_value=math.nan)
        ratio = Interval(c.median_ratio, c.ratio_low, c.ratio_high)
        if math.isfinite(ratio.value) and ratio.low > 0:
            shown = f"× {show(ratio)} over {c.n_layers} modules"
            evidence.append(Evidence(f"{a.full}, {which} block / middle", _negated(_log(ratio)), 0.0, shown))
    return _claim(name, text, rule, a, evidence, f"{NO_FULL}, with four blocks or more")


def _end(runs: Runs, a: Arena, which: int) -> tuple[Array, Array]:
    """(seeds, modules) of rank_90 at one end, and the median of the blocks between the ends."""
    none = np.zeros((0, 0))
    if a.full is None:
        return none, none
    replicates = [r for r in runs.representatives(a.full) if r.layers is not None]
    values = runs.table.metric("rank_90", replicates)
    if not values.size:
        return none, none
    values = np.where(_resolved(runs, replicates), values, math.nan)
    module, kinds, block = np.array(runs.table.module), np.array(runs.table.kind), runs.table.block
    blocks = np.unique(block[np.isfinite(block) & np.isin(kinds, LINEAR)])
    if len(blocks) < 4:
        return none, none
    end, middle = [], []
    for m in np.unique(module[np.isin(kinds, LINEAR)]):
        end.append(_row_medians(values[:, (module == m) & (block == blocks[which])]))
        between = (module == m) & (block > blocks[0]) & (block < blocks[-1])
        middle.append(_row_medians(values[:, between]))
    return np.stack(end, axis=1), np.stack(middle, axis=1)


def _log(x: Interval) -> Interval:
    return Interval(*(math.log(v) if 0 < v < math.inf else math.nan for v in x))


def _negated(x: Interval) -> Interval:
    return Interval(-x.value, -x.high, -x.low)
