"""What each figure is called, how it is read, and what it says here in one line."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from deltaw.reports.heatmaps import shown
from deltaw.reports.layers import Layers
from deltaw.reports.text import code, listed, number, percent, plural, whole
from deltaw.results.summary import Summary

if TYPE_CHECKING:
    import pandas as pd

EXPERTS = "experts"
ALIKE = 1.03  # the largest over the smallest, up to which numbers are said to be about the same
CELLS = (
    "Grey cells did not change; hatched ones did, but rounding hides the number. Experts of one layer share a cell, "
    "which shows their median. Point at a cell for its numbers, click it for its spectrum (arrow keys move between "
    "cells)."
)
TITLES = {
    "hero": (
        "Where it changed, layer by layer",
        "Each cell is one weight matrix: its row says which module, its column which layer (the first "
        "column holds what is outside of layers). Darker means that it moved further from the base: ‖ΔW‖ / "
        f"‖W0‖, or ‖ΔW‖ where the base is not known. {CELLS}",
    ),
    "experts": (
        "Which experts changed",
        "Each cell is one expert of one layer, all its matrices taken as one vector: ‖ΔW‖ / ‖W0‖. Grey experts are the "
        "same on both sides. Click a cell for the first of its matrices.",
    ),
    "vectors": (
        "Norms and biases",
        "The same picture for 1-D tensors. They have no rank; an adapter of matrices does not touch them "
        f"unless it is told to. {CELLS}",
    ),
    "ratio": (
        "Rank against noise",
        "rank_90 (how many directions hold 90 % of the energy) divided by what noise of the same shape "
        "would have. 1 means: as spread out as noise. Small means genuinely low-rank. The ratio removes the "
        f"effect of the matrix's shape, which the plain rank carries. {CELLS}",
    ),
    "effective": (
        "Effective rank",
        "exp of the entropy of the singular values: over how many directions the update spreads, tail "
        f"included. It depends on the shape of the matrix, so compare along a row. {CELLS}",
    ),
    "intruders": (
        "Intruder dimensions",
        "How many of the leading singular directions of the fine-tuned matrix are nearly orthogonal to "
        "every direction of the base (Shuttleworth 2024). A random direction always counts as one, so "
        f"compare with the null in the table below. {CELLS}",
    ),
    "on_data": (
        "Where it changes the outputs",
        "How much the update adds to a matrix's outputs on the first data set, against what the base gives: "
        "‖ΔW·C^½‖ / ‖W0·C^½‖, C the second moments of its inputs there. A large update that no input meets is light "
        f"here. {CELLS}",
    ),
    "selectivity": (
        "On which of the two data sets it acts",
        "The relative change on the first data set over that on the second. Above 1 the update acts more on what it "
        f"was for, below 1 more on what was to be kept. {CELLS}",
    ),
    "change": (
        "Relative change by module",
        "One dot per matrix, one line per module (its first layer highest, its last lowest), the most changed on "
        "top; the bar marks the median. The axis is logarithmic where changes differ by more than a little. Colours "
        "are module kinds, the same in all figures.",
    ),
    "precision": (
        "Update against rounding",
        "One dot per matrix: which share of the stored update's energy is explained by rounding to the stored "
        "precision. Left of the first line (1 %) it does not matter; right of the second (50 %) the file shows "
        "rounding rather than training.",
    ),
    "shrinkage": (
        "Shrinkage along the base",
        "One dot per matrix: the factor c for which −c·W0 is the part of ΔW that lies along the base. Decoupled "
        "weight decay gives the same positive c in every decayed matrix; but so do a turn at constant norm, pruning "
        "and a coarser grid, up to about the square of the relative change.",
    ),
    "spectra": (
        "Singular values by module kind",
        "One line per matrix on logarithmic axes, in units of the root-mean-square singular value; grey below the "
        "noise edge of its storage. The dashed line is noise of the most frequent shape: a line that follows it is "
        "spread like noise, one that starts high and falls fast is low-rank.",
    ),
    "energy": (
        "Cumulative energy by module kind",
        "One line per resolved matrix: the share of ‖ΔW‖² that its first r directions hold; dotted at 90 %. Dashed: "
        "noise of the most frequent shape. The further left of the dashed line, the better a low-rank adapter could "
        "hold the update.",
    ),
    "kept": (
        "Energy kept against adapter rank",
        "The share of ‖ΔW‖² that the best rank-r approximation keeps (Eckart–Young), median over the matrices of a "
        "kind with the middle 80 % shaded. It is an upper bound for *this* update: an adapter that is trained from "
        "scratch may find another.",
    ),
    "ranks": (
        "rank_90 by layer",
        "One line per module; dashed is what noise of the same shape would have. Distance below the dashed line is "
        "structure; differences between modules that their dashed lines share are only shape.",
    ),
}  # fmt: skip


def extremes(layers: Layers, metric: str, vectors: bool = False) -> str:
    """Where a metric is highest and lowest, by module, and how it goes with depth."""
    frame = layers.vectors if vectors else layers.matrices
    rows = frame[frame["changed"] & frame[metric].notna()]
    known = len(rows)
    rows = rows.assign(**{metric: layers.said(metric).reindex(rows.index)})
    rows = rows[rows[metric].notna()]
    if not len(rows):
        return (
            f"Rounding hides it in {'all' if known != 1 else 'the'} "
            f"{plural(known, 'changed matrix', 'changed matrices')}."
        )
    by_module = rows.groupby("site")[metric].median().sort_values()
    if len(by_module) == 1:
        return f"{code(by_module.index[0])}: {shown(metric, by_module.iloc[0])}."
    if by_module.iloc[-1] <= ALIKE * by_module.iloc[0]:
        return (
            f"About the same in every module: {shown(metric, by_module.median())}, medians over "
            f"layers{_depth(rows, metric)}."
        )
    text = (
        f"Highest in {code(by_module.index[-1])} ({shown(metric, by_module.iloc[-1])}), lowest in "
        f"{code(by_module.index[0])} ({shown(metric, by_module.iloc[0])}), medians over layers"
    )
    return text + _depth(rows, metric) + "."


def _depth(rows: pd.DataFrame, metric: str) -> str:
    """Whether the last third of the layers differs from the first by more than a tenth, module by module."""
    inside = rows[rows["layer"].notna()]
    if inside["layer"].nunique() < 3 or inside["stack"].nunique() != 1:
        return ""
    low, high = inside["layer"].quantile([1 / 3, 2 / 3])
    first = inside[inside["layer"] <= low].groupby("slot")[metric].median()
    last = inside[inside["layer"] >= high].groupby("slot")[metric].median()
    ratio = float((last / first).median())
    if not ratio > 0:
        return ""
    if ratio > 1.1:
        return f"; it grows with depth (last third of the layers {number(ratio, 2)} times the first)"
    if ratio < 1 / 1.1:
        return f"; it falls with depth (last third of the layers {number(ratio, 2)} times the first)"
    return "; first and last layers differ little"


def of_experts(layers: Layers) -> str:
    """How many experts changed, layer by layer."""
    rows = layers.matrices.assign(expert=layers.experts)
    rows = rows[rows["expert"].notna() & rows["layer"].notna()]
    moved = rows.groupby(["layer", "expert"])["changed"].any()
    by_layer, total = moved.groupby("layer").sum(), moved.groupby("layer").size()
    low, high = int(by_layer.min()), int(by_layer.max())
    span = f"{whole(low)}" if low == high else f"{whole(low)} to {whole(high)}"
    every = f"of {whole(total.max())} experts changed in each layer"
    still = int((~moved).sum())
    return f"{span} {every}; {whole(still)} of {whole(len(moved))} did not." if still else f"All {every[3:]}."


def reading(identifier: str, layers: Layers, s: Summary) -> str:
    """One line on a figure, from the numbers that are in it."""
    writers = {
        "change": lambda: _change(s),
        "precision": lambda: _precision(s),
        "shrinkage": lambda: _shrinkage(s),
        "spectra": lambda: _spectra(layers),
        "energy": lambda: _energy(layers),
        "kept": lambda: _kept(s),
        "ranks": lambda: _ranks(layers),
    }
    return writers[identifier]()


def _change(s: Summary) -> str:
    if s.change.n < 2:
        return ""
    most = s.most_changed_matrices[0]
    if s.change.high <= ALIKE * s.change.low:
        return f"All changed matrices moved by about {percent(s.change.median)}."
    return (
        f"The middle 80 % of the changed matrices moved by {percent(s.change.p10)} to {percent(s.change.p90)}; "
        f"{code(most.key)} moved most, by {percent(most.relative_change)}."
    )


def _precision(s: Summary) -> str:
    r = s.resolution
    words = {"resolved": r.resolved, "noisy": r.noisy, "below precision": r.below_precision}
    counts = [(count, word) for word, count in words.items() if count]
    if r.known == 1:
        said, where = f"The changed matrix is {counts[0][1]}", "in it"
    elif len(counts) == 1:
        said, where = f"All {whole(r.known)} changed matrices are {counts[0][1]}", "in the typical one"
    else:
        parts = listed(f"{whole(n)} {'is' if n == 1 else 'are'} {w}" for n, w in counts)
        said = f"Of {whole(r.known)} changed matrices, {parts}"
        where = "in the typical one"
    return f"{said}; rounding explains {percent(s.precision.rounding.median, 2)} of the energy {where}."


def _shrinkage(s: Summary) -> str:
    c = s.against_base.shrinkage
    if c.n == 1:
        along = percent(s.against_base.along_base.median, 2)
        return f"c = {number(c.median)}; the part along the base holds {along} of the update's energy."
    low, high = number(c.p10), number(c.p90)
    middle = f" (middle 80 %: {low} to {high})" if low != high else ""
    return (
        f"Median c = {number(c.median)}{middle}; the part along the base holds "
        f"{percent(s.against_base.along_base.median, 2)} of the typical update's energy."
    )


def _spectra(layers: Layers) -> str:
    parts = []
    for kind in layers.kinds[:4]:
        rows = layers.changed[layers.changed["kind"] == kind]
        k = rows[["rows", "cols"]].min(axis=1)
        first = (rows["spectral_norm"] / rows["fro_norm"] * k**0.5).median()
        parts.append(f"{kind} {number(first, 2)}")
    return (
        f"The largest singular value over the root-mean-square one, median by kind: {', '.join(parts)} (noise: at "
        f"most 2)."
    )


def _energy(layers: Layers) -> str:
    parts = []
    for kind in layers.kinds[:4]:
        rows = layers.readable[layers.readable["kind"] == kind]
        if len(rows):
            parts.append(f"{kind} {number(rows['rank_90'].median())} (noise {number(rows['rank_90_null'].median())})")
    return f"Directions that hold 90 % of the energy, median by kind: {', '.join(parts)}."


def _kept(s: Summary) -> str:
    medians = {r: s.energy[f"energy_at_{r}"].median for r in (4, 16, 64, 256) if s.energy[f"energy_at_{r}"].n}
    enough = min((r for r, share in medians.items() if share == 1), default=math.inf)
    shares = [f"rank {r}: {percent(share, 2)}" for r, share in medians.items() if r <= enough]
    return f"Kept at best, median over the matrices: {', '.join(shares)}."


def _ranks(layers: Layers) -> str:
    rows = layers.readable[layers.readable["layer"].notna()]
    by_layer = rows.groupby("layer")["rank_90_ratio"].median()
    if len(by_layer) < 2 or rows["stack"].nunique() > 1:  # layer 0 of one stack is not layer 0 of another
        return ""
    if by_layer.max() <= ALIKE * by_layer.min():
        return f"Against noise all layers are alike ({number(by_layer.median(), 2)}), medians over modules."
    return (
        f"Against noise, layer {by_layer.idxmin():.0f} is the lowest ({number(by_layer.min(), 2)}) and layer "
        f"{by_layer.idxmax():.0f} the highest "
        f"({number(by_layer.max(), 2)}), medians over modules."
    )
