"""The fingerprint of a group: what its update looks like, in one row, and how that differs from the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deltaw.comparison import statistics
from deltaw.comparison.endpoints import endpoints, has_layers
from deltaw.comparison.fronts import MEAN, FrontDifference
from deltaw.comparison.manifest import AXES
from deltaw.comparison.roles import references
from deltaw.comparison.runs import Array, Run, Runs
from deltaw.comparison.score_differences import at_endpoints, score_endpoints
from deltaw.comparison.welch import holm_steps, two_sided
from deltaw.results.columns import FINGERPRINT, is_signed
from deltaw.results.decay import summarize_decay
from deltaw.types import Cell, Interval

if TYPE_CHECKING:
    import pandas as pd

LINEAR = ("attention", "mlp")


def fingerprints_frame(runs: Runs, gaps: Sequence[FrontDifference]) -> pd.DataFrame:
    """One row per group.

    Columns: `group`; `reference`, its group to compare with (in another domain that domain's plain full fine-tuning);
    `method`, `setting`, `n_seeds`, `n_layers`, `interval_covers`; for each quantity x the median over layers `x` with
    `x_low` and `x_high`; for `learning` and `retention` the mean over seeds, its bounds, `x_items` (the standard error
    of the difference by the test items alone) and `x_where` (the tokens and settings that are compared);
    `common_shrinkage` (whether in every run all matrices that can tell shrank by one factor, as decoupled weight decay
    leaves them) and `shrinkage_spread` (of c between the attention and MLP matrices).

    Against the reference, at the largest number of tokens that both have: `x_effect` (median ratio over shared layers;
    of signed metrics and scores the difference), `x_effect_low`, `x_effect_high`, and `x_p`, Welch's p over seeds;
    `equal_learning_effect` and so on: the difference in retention over the range of learning that both reach. The
    intervals and p of one quantity are adjusted by Holm for the number of groups; p is empty with one seed.
    """
    import pandas as pd

    against = references(runs)
    rows = [_row(runs, g, against[g]) for g in runs.groups]
    for name in FINGERPRINT:
        _enter(rows, name, _metric_effects(runs, against, name))
    for axis in AXES:
        _enter(rows, axis, _score_effects(runs, against, axis))
        _enter_places(runs, rows, against, axis)
    _enter(rows, "equal_learning", _gap_effects(gaps, against))
    return pd.DataFrame(rows)


Row = dict[str, Cell]


class Effect(NamedTuple):
    """A group against its reference: the p of the seeds, and the effect with its interval at a level."""

    p: float
    at: Callable[[float], Interval]


def _row(runs: Runs, group: str, reference: str) -> Row:
    mine = runs.representatives(group)
    table = runs.table
    analysed = table.rows(mine)
    row: Row = {
        "group": group,
        "reference": reference,
        "method": mine[0].method,
        "setting": runs.chosen[group].words(),
        "n_seeds": len(mine),
        "n_layers": int(np.isfinite(table.values[analysed]).any((0, 1)).sum()) if analysed else 0,
        "interval_covers": "",
    }
    for name in FINGERPRINT:
        interval, covers = statistics.median_interval(table.of_moved(name, mine), seed=runs.seed)
        row["interval_covers"] = row["interval_covers"] or covers
        row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    row |= _common_shrinkage(runs, mine)
    for axis in AXES:
        value = statistics.mean_interval([r.score(axis) for r in mine])
        row |= {axis: value.value, f"{axis}_low": value.low, f"{axis}_high": value.high}
    return row


def _metric_effects(runs: Runs, against: Mapping[str, str], name: str) -> dict[str, Effect]:
    """The effect of every group that has layers in common with its reference."""
    out: dict[str, Effect] = {}
    signed = is_signed(name)
    for group, reference in against.items():
        ends = endpoints(runs, group, reference, has_layers, anywhere=True) if group != reference else None
        if ends is None:
            continue
        a, b = statistics.shared(runs.table.metric(name, ends.a), runs.table.metric(name, ends.b))
        if not a.size or not b.size:
            continue

        def at(alpha: float, a: Array = a, b: Array = b) -> Interval:
            c = statistics.contrast(a, b, signed=signed, seed=runs.seed, alpha=alpha, p_value=math.nan)
            return c.difference if math.isnan(c.median_ratio) else c.ratio

        out[group] = Effect(two_sided(statistics.seed_difference(a, b, signed=signed)), at)
    return out


def _score_effects(runs: Runs, against: Mapping[str, str], axis: str) -> dict[str, Effect]:
    """The difference of every group that has scores at a number of tokens that its reference has, too."""
    out: dict[str, Effect] = {}
    for group, reference in against.items():
        ends = score_endpoints(runs, group, reference, axis) if group != reference else None
        if ends is not None:
            estimate = at_endpoints(ends, axis).estimate
            out[group] = Effect(two_sided(estimate), estimate.interval)
    return out


def _gap_effects(gaps: Sequence[FrontDifference], against: Mapping[str, str]) -> dict[str, Effect]:
    """The difference in retention at equal learning of every group whose front overlaps with its reference's."""
    out: dict[str, Effect] = {}
    for gap, estimate in gaps:
        if gap.matched == AXES[0] and gap.level == MEAN:
            a, b = gap.group_a, gap.group_b
            if against[a] == b:
                out[a] = Effect(two_sided(estimate), estimate.interval)
            elif against[b] == a:
                out[b] = Effect(two_sided(estimate), estimate.negated().interval)
    return out


def first_screen(runs: Runs, gaps: Sequence[FrontDifference]) -> dict[str, dict[str, float]]:
    """By axis (`learning`, `retention`, `equal_learning`) the adjusted p of each group against its reference."""
    against = references(runs)
    found = {axis: _score_effects(runs, against, axis) for axis in AXES}
    found["equal_learning"] = _gap_effects(gaps, against)
    out: dict[str, dict[str, float]] = {}
    for axis, effects in found.items():
        adjusted, _ = holm_steps(np.array([e.p for e in effects.values()], dtype=np.float64))
        out[axis] = dict(zip(effects, map(float, adjusted), strict=True))
    return out


def _enter(rows: Sequence[Row], name: str, found: Mapping[str, Effect]) -> None:
    """Enter the effects of one quantity into the rows, adjusted for their number."""
    adjusted, level = holm_steps(np.array([e.p for e in found.values()], dtype=np.float64))
    by_group = dict(zip(found, zip(map(float, adjusted), map(float, level), strict=True), strict=True))
    for row in rows:
        effect, low, high, p = math.nan, math.nan, math.nan, math.nan
        group = str(row["group"])
        if group in found:
            p, alpha = by_group[group]
            effect, low, high = found[group].at(alpha)
        row |= {f"{name}_effect": effect, f"{name}_effect_low": low, f"{name}_effect_high": high, f"{name}_p": p}


def _enter_places(runs: Runs, rows: Sequence[Row], against: Mapping[str, str], axis: str) -> None:
    """Enter where the scores of a group and its reference are compared, and their error by the test items alone."""
    for row in rows:
        group = str(row["group"])
        ends = score_endpoints(runs, group, against[group], axis) if group != against[group] else None
        row[f"{axis}_where"] = ends.where.strip() if ends is not None else ""
        row[f"{axis}_items"] = at_endpoints(ends, axis).items if ends is not None else math.nan


def _common_shrinkage(runs: Runs, mine: list[Run]) -> Row:
    """Whether all matrices that can tell shrank by one factor, as decoupled decay leaves them, and how far c varies."""
    inside = np.isin(np.array(runs.table.kind), LINEAR)
    c = runs.table.metric("shrinkage", mine)
    mean = statistics.seed_mean(c[:, inside]) if c.size else c
    mean = mean[np.isfinite(mean)]
    if not mean.size:
        return {"common_shrinkage": None, "shrinkage_spread": math.nan}
    median = float(np.median(mean))
    low, high = np.percentile(mean, [25, 75])
    spread = float(high - low) / abs(median) if median else math.inf
    layers = [run.layers for run in mine if run.layers is not None]
    rows = ([{str(k): v for k, v in row.items()} for row in frame.to_dict("records")] for frame in layers)
    seen = [summarize_decay(found) for found in rows]
    common = all(decay.visible and decay.agree == decay.informative for decay in seen)
    return {"common_shrinkage": common, "shrinkage_spread": spread}
