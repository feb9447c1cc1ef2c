"""Fronts, not endpoints: retention at matched learning, and learning at matched retention.

A method that only trained less also forgot less. So the points of a group (its numbers of tokens, its learning
rates) are joined to a front: those that no other point of the group beats on both axes, in order, with straight
lines between neighbours (half-way in training is about half-way on both axes; a convex hull would promise models
that nobody trained). Two groups are compared where their fronts overlap, and nowhere else.

Two things are uncertain. The seeds move the corners (`front_error`). And between two corners the curve need not be
straight: one and the same curve looks different where it was sampled at two points and at six. So the interval takes
in the chord's sag (`front_sag`). Without seeds there is a difference and no interval.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deltaw.comparison.front_error import Corners, seed_error
from deltaw.comparison.front_sag import Sag, sag
from deltaw.comparison.manifest import AXES
from deltaw.comparison.runs import Array, Run, Runs, arena, mean_scores
from deltaw.comparison.welch import Estimate

if TYPE_CHECKING:
    import pandas as pd

LEVELS = {"low": 0.0, "middle": 0.5, "high": 1.0}
MEAN = "mean over the overlap"


class Front(NamedTuple):
    """A group's best points: `x` ascending (learning), `y` descending (retention: what was kept).

    `seeds` has the (learning, retention) of each seed at each point, if they are known; `settings` says from how many
    choices of hyperparameters the points were picked.
    """

    x: Array
    y: Array
    seeds: Sequence[Mapping[int, tuple[float, float]]] = ()
    settings: int = 1

    def axis(self, matched: str) -> tuple[Array, Array]:
        """(matched, compared) coordinates, ascending in the matched one."""
        return (self.x, self.y) if matched == AXES[0] else (self.y[::-1], self.x[::-1])


def best_of(points: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of the points that no other one beats, in ascending order of the first coordinate.

    Args:
        points: (learning, retention), higher is better on both; those with a NaN are left out, and of equal ones
            the first is kept.
    """
    known = [i for i, (x, y) in enumerate(points) if math.isfinite(x) and math.isfinite(y)]
    best: list[int] = []
    for i in sorted(
        known, key=lambda i: (-points[i][0], -points[i][1])
    ):  # from the right: each must rise above all before
        if not best or points[i][1] > points[best[-1]][1]:
            best.append(i)
    return best[::-1]


def front(points: Sequence[tuple[float, float]], seeds: Sequence[Mapping[int, tuple[float, float]]] = ()) -> Front:
    """The front of some points; see `best_of`."""
    best = best_of(points)
    x, y = (np.array([points[i][axis] for i in best], dtype=np.float64) for axis in (0, 1))
    return Front(x, y, [seeds[i] for i in best] if seeds else ())


@dataclass(frozen=True)
class Gap:
    """Two groups at equal learning (or retention); the fields are columns of `fronts`.

    Attributes:
        group_a, group_b: The groups.
        matched: The axis on which they are equal.
        compared: The other one.
        level: Where along the common range, `MEAN` for all of it; empty if there is none.
        at: On the matched axis.
        value_a, value_b: Heights of the fronts.
        difference: a − b.
        low, high: Its 95 % interval: seeds, and what the points do not show of the curve between them.
        down, up: The part of that interval that the points leave open whatever the seeds.
        n_seeds_a, n_seeds_b: Seeds that have every corner that matters.
        settings_a, settings_b: How many choices of hyperparameters the fronts were picked from.
        note: Why something is missing.
    """

    group_a: str
    group_b: str
    matched: str
    compared: str
    level: str = ""
    at: float = math.nan
    value_a: float = math.nan
    value_b: float = math.nan
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    down: float = math.nan
    up: float = math.nan
    n_seeds_a: int = 0
    n_seeds_b: int = 0
    settings_a: int = 0
    settings_b: int = 0
    note: str = ""


COLUMNS = tuple(f.name for f in fields(Gap))


class FrontDifference(NamedTuple):
    """A gap, and the estimate that its interval comes from."""

    gap: Gap
    estimate: Estimate


def fronts_frame(gaps: Sequence[FrontDifference]) -> pd.DataFrame:
    """One row per pair of groups, direction (`matched`, `compared`) and `level`: the columns are `Gap`'s fields."""
    import pandas as pd

    return pd.DataFrame([asdict(g.gap) for g in gaps], columns=list(COLUMNS))


def compare_fronts(runs: Runs) -> list[FrontDifference]:
    """Every pair of groups whose scores may be compared: over their overlap, at its ends and in its middle.

    Where the fronts do not overlap there is one gap with a `note` and no numbers.
    """
    fronts = {g: group_front(runs, g) for g in runs.groups}
    scored = [g for g in runs.groups if len(fronts[g].x)]
    out: list[FrontDifference] = []
    for a, b in itertools.combinations(scored, 2):
        if arena(runs.chosen[a]) == arena(runs.chosen[b]):
            for matched in AXES:
                out.extend(_pair(a, b, fronts[a], fronts[b], matched))
    return out


def group_front(runs: Runs, group: str) -> Front:
    """The front of a group: of its settings, seeds averaged."""
    home = arena(runs.chosen[group])
    found = [(s, rs) for s, rs in runs.settings_of[group] if arena(s) == home]
    points = [mean_scores(rs) for _, rs in found]
    choices = {s._replace(tokens=None) for (s, _), p in zip(found, points, strict=True) if all(map(math.isfinite, p))}
    return front(points, [_by_seed(rs) for _, rs in found])._replace(settings=max(1, len(choices)))


def _by_seed(replicates: Sequence[Run]) -> dict[int, tuple[float, float]]:
    """Scores by seed, by position where the runs do not say theirs."""
    scores = [(r.score(AXES[0]), r.score(AXES[1])) for r in replicates]
    labels = [i if r.spec.seed is None else r.spec.seed for i, r in enumerate(replicates)]
    return {k: v for k, v in zip(labels, scores, strict=True) if all(map(math.isfinite, v))}


def _pair(a: str, b: str, fa: Front, fb: Front, matched: str) -> list[FrontDifference]:
    compared = AXES[1 - AXES.index(matched)]
    overlap = common_range(fa, fb, matched)
    if overlap is None:
        spans = " and ".join(f"[{f.axis(matched)[0][0]:.4g}, {f.axis(matched)[0][-1]:.4g}]" for f in (fa, fb))
        note = f"unknown: the ranges of {matched} do not overlap ({spans})"
        return [FrontDifference(Gap(a, b, matched, compared, note=note), Estimate(math.nan))]
    out = []
    for level, (low, high) in ranges(overlap).items():
        va, vb = (mean_height(f, matched, low, high) for f in (fa, fb))
        assert va is not None
        assert vb is not None
        estimate, seeds = _gap(fa, fb, matched, low, high, va - vb)
        interval = estimate.interval()
        note = "" if estimate.known else f"no interval: {_unknown(seeds)}"
        gap = Gap(
            *(a, b, matched, compared, level, (low + high) / 2, va, vb, *interval, estimate.down, estimate.up),
            *(*seeds, fa.settings, fb.settings, note),
        )
        out.append(FrontDifference(gap, estimate))
        if overlap[0] == overlap[1]:
            break  # a single common point: its ends and its mean are the same
    return out


def _gap(fa: Front, fb: Front, matched: str, low: float, high: float, value: float) -> tuple[Estimate, tuple[int, int]]:
    """The difference of two fronts over a range with its error, and how many seeds it rests on."""
    ca, cb = _corners(fa, matched), _corners(fb, matched)
    error, df, seeds = seed_error(ca, cb, low, high)
    sa, sb = (_sag(f, matched, low, high) for f in (fa, fb))
    most, least = max(fa.settings, fb.settings), min(fa.settings, fb.settings)
    return Estimate(value, error, df, sa.down + sb.up, sa.up + sb.down, math.ceil(most / least)), seeds


def _unknown(seeds: tuple[int, int]) -> str:
    return "fewer than two seeds in a group" if min(seeds) < 2 else "the seeds do not differ at all"


def _sag(f: Front, matched: str, low: float, high: float) -> Sag:
    return sag(*f.axis(matched), low, high)


def _corners(f: Front, matched: str) -> Corners:
    """A front's corners and their seeds in (matched, compared) coordinates, ascending in the matched one."""
    x, y = f.axis(matched)
    seeds = list(f.seeds) if matched == AXES[0] else [{k: v[::-1] for k, v in s.items()} for s in f.seeds][::-1]
    return Corners(x, y, seeds)


def common_range(a: Front, b: Front, matched: str) -> tuple[float, float] | None:
    """The interval of the matched axis that both fronts reach, or None."""
    if not len(a.x) or not len(b.x):
        return None
    low = max(a.axis(matched)[0][0], b.axis(matched)[0][0])
    high = min(a.axis(matched)[0][-1], b.axis(matched)[0][-1])
    return (float(low), float(high)) if low <= high else None


def ranges(overlap: tuple[float, float]) -> dict[str, tuple[float, float]]:
    """What two fronts are compared over: all of their overlap, and its ends and middle, by level."""
    low, high = overlap
    # Never outside the overlap, as low + (high − low) may be by rounding.
    points = {name: (1 - share) * low + share * high for name, share in LEVELS.items()}
    return {MEAN: overlap} | {name: (at, at) for name, at in points.items()}


def mean_height(f: Front, matched: str, low: float, high: float) -> float | None:
    """The mean of the compared axis over [low, high] of the matched one; None where the front does not reach.

    The front is piecewise linear, so its integral is the trapezoid's over its corners.
    """
    if not len(f.x):
        return None
    x, y = f.axis(matched)
    if low < x[0] or high > x[-1]:
        return None
    if low == high:
        return float(np.interp(low, x, y))
    corners = np.concatenate([[low], x[(x > low) & (x < high)], [high]])
    heights = np.interp(corners, x, y)
    return float(((heights[1:] + heights[:-1]) / 2 * np.diff(corners)).sum() / (high - low))
