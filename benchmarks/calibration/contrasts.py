"""The table of contrasts: how often an adjusted p is below .05 where nothing differs, and where something does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from benchmarks.calibration.rows import Row, rate
from benchmarks.calibration.runs import Group, Rng, layers, profile, run
from deltaw.comparison import statistics
from deltaw.comparison.contrasts import tests_of
from deltaw.comparison.runs import Runs
from deltaw.comparison.welch import holm

SEEDS, GROUPS, KINDS = (1, 2, 3, 5), (2, 3, 4, 5), ("iid", "realistic")
PLANTED = 3.0  # spreads of the seeds


def made(rng: Rng, kind: str, groups: int, seeds: int, factor: float = 1.0) -> Runs:
    """Runs whose layers do not differ between groups, but for one metric of the first group."""
    levels = profile(rng)
    items = []
    for g in range(groups):
        group = Group(f"g{g}", "full", {})
        planted = {"rank_90": factor} if g == 0 and factor != 1.0 else None
        items += [run(group, s, {}, layers(rng, kind, levels, planted)) for s in range(seeds)]
    return Runs(items, "g0")


def adjusted(runs: Runs) -> np.ndarray:
    """(pairs of groups, metrics) of `p_adjusted`, as the table of contrasts has it, without its intervals."""
    table = runs.table
    values = {g: table.values[table.rows(runs.representatives(g))] for g in runs.groups}
    found = [tests_of(values[a], values[b], table.metrics) for a, b in itertools.combinations(values, 2)]
    larger = np.array([np.maximum(t.p_value, t.p_seeds) for t in found])
    return holm(larger.ravel()).reshape(larger.shape)


def table(tables: int = 500) -> Iterator[Row]:
    """Null tables by seeds and groups, planted effects, and the coverage of the ratio's interval."""
    for kind in KINDS:
        for seeds in SEEDS:
            for groups in GROUPS:
                rng = np.random.default_rng([seeds, groups, KINDS.index(kind)])
                found = several = 0
                for _ in range(tables):
                    p = adjusted(made(rng, kind, groups, seeds))
                    found += bool((p < 0.05).any())
                    several = p.size
                name = (
                    f"nothing differs, {kind}, {seeds} seeds, {groups} groups ({several} tests): some p_adjusted < .05"
                )
                yield rate(name, "0" if seeds == 1 else "≤ .05", found, tables)
    yield from _power(tables)
    yield from _coverage(tables)


def _power(tables: int) -> Iterator[Row]:
    for seeds, spreads in ((3, 6.0), (5, PLANTED), (5, 6.0)):
        rng = np.random.default_rng([7, seeds])
        # The spread of a run's median over layers is the seed's, but for a little noise.
        factor = float(np.exp(0.1 * spreads))
        alone = table_wide = 0
        for _ in range(tables):
            runs = made(rng, "realistic", 3, seeds, factor)
            m = runs.table.metrics.index("rank_90")
            values = [runs.table.values[runs.table.rows(runs.representatives(g))] for g in runs.groups]
            alone += sum(tests_of(values[0], v, runs.table.metrics).p_seeds[m] < 0.05 for v in values[1:])
            table_wide += int((adjusted(runs)[:2, m] < 0.05).sum())
        what = f"rank differs by {spreads:g} spreads, {seeds} seeds, 3 groups"
        yield rate(f"{what}: p_seeds < .05", "published", alone, 2 * tables)
        yield rate(f"{what}: p_adjusted < .05", "published", table_wide, 2 * tables)


def _coverage(tables: int) -> Iterator[Row]:
    """Of the 95 % interval of the median ratio, with unequal spreads, and with one seed on a side."""
    cases = (((2, 2), 0.1, 0.1), ((3, 3), 0.1, 0.1), ((5, 5), 0.1, 0.1), ((3, 3), 0.3, 0.02), ((3, 1), 0.1, 0.1))
    for (na, nb), sa, sb in cases:
        rng = np.random.default_rng([11, na, nb, int(100 * sa)])
        covered = 0
        for i in range(tables):
            level = rng.normal(size=28)
            a, b = (
                np.exp(level + s * rng.normal(size=(n, 1)) + 0.05 * rng.normal(size=(n, 28)))
                for n, s in ((na, sa), (nb, sb))
            )
            c = statistics.contrast(1.3 * a, b, seed=i, p_value=0.0)
            covered += c.ratio_low <= 1.3 <= c.ratio_high
        name = f"interval of the ratio covers it: {na} and {nb} seeds, spreads {sa:g} and {sb:g}"
        yield rate(name, "≥ .95" if nb > 1 else "published", covered, tables)
