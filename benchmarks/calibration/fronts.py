"""Fronts: one true curve sampled at different points must not look like two, and two must still be told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.calibration.rows import Row, rate
from benchmarks.calibration.runs import FULL, Group, Rng, run
from deltaw.comparison.claims.evidence import at_equal_learning
from deltaw.comparison.claims.verdicts import Claim, ClaimEvidence
from deltaw.comparison.fronts import compare_fronts
from deltaw.comparison.runs import Runs

Curve = Callable[[NDArray[np.float64]], NDArray[np.float64]]

SPREAD = 0.003  # of the seeds, on both axes
LORA = Group("LoRA r=16", "lora", {"rank": 16})
CURVES: Mapping[str, Curve] = {
    "parabola": lambda x: 0.6 - 0.3 * x**2,
    "quartic": lambda x: 0.6 - 0.3 * x**4,
    "exponential": lambda x: 0.6 - 0.3 * np.expm1(3 * x) / np.expm1(3),
    "saturating": lambda x: 0.6 - 0.3 * (1 - np.exp(-3 * x)),
    "logistic": lambda x: 0.6 - 0.3 / (1 + np.exp(-10 * (x - 0.5))),
    "quarter circle": lambda x: 0.6 - 0.3 * (1 - np.sqrt(1 - np.minimum(x, 1) ** 2)),
}
FAST, SLOW = (0.1, 0.8, 0.9, 0.95), (0.1, 0.3, 0.5, 0.7)
DESIGNS: Mapping[str, tuple[Sequence[float], Sequence[float]]] = {
    "2 and 6 points": (np.linspace(0.1, 0.9, 2), np.linspace(0.1, 0.9, 6)),
    "3 and 6 points": (np.linspace(0.1, 0.9, 3), np.linspace(0.1, 0.9, 6)),
    "6 and 2 points": (np.linspace(0.1, 0.9, 6), np.linspace(0.1, 0.9, 2)),
    "4 fast, 4 slow": (FAST, SLOW),
    "4 and 6 points": (np.linspace(0.1, 0.9, 4), np.linspace(0.1, 0.9, 6)),
    "6 and 6 points": (np.linspace(0.1, 0.9, 6), np.linspace(0.1, 0.9, 6)),
    "6 and 6 points, shifted": (np.linspace(0.1, 0.9, 6), np.linspace(0.17, 0.97, 6)),
}
POWERFUL = ("6 and 6 points", "6 and 6 points, shifted")


def made(rng: Rng, curve: Curve, design: tuple[Sequence[float], Sequence[float]], gap: float, seeds: int) -> Runs:
    """Two groups along one curve, the second `gap` above it."""
    items = []
    for group, points, above in ((FULL, design[0], 0.0), (LORA, design[1], gap)):
        plain = group._replace(hyper={k: v for k, v in group.hyper.items() if k != "domain"})
        for j, x in enumerate(points):
            for s in range(seeds):
                u, v = SPREAD * rng.normal(size=2)
                kept = float(curve(np.array(x))) + above + v
                items.append(run(plain, s, {"learning": x + u, "retention": kept}, tokens=1000 * (j + 1)))
    return Runs(items, FULL.name)


def verdict(runs: Runs) -> str:
    """What is said of retention at equal learning."""
    found = at_equal_learning(compare_fronts(runs), LORA.name, FULL.name)
    evidence = [found] if isinstance(found, ClaimEvidence) else []
    return Claim("", "", "", "", evidence=evidence).verdict


def table(tables: int = 500) -> Iterator[Row]:
    """By curve and design: how often two fronts of one curve are told apart, and two of curves 5 spreads apart."""
    for name, curve in CURVES.items():
        for design, points in DESIGNS.items():
            rng = np.random.default_rng([1, *map(ord, name[:3]), *map(ord, design[:3])])
            open_ = sum(verdict(made(rng, curve, points, 0.0, 3)) == "cannot tell" for _ in range(tables))
            yield rate(f"one {name}, {design}, 3 seeds: cannot tell", "≥ .95", open_, tables)
    for name, curve in CURVES.items():
        for design in POWERFUL:
            rng = np.random.default_rng([2, *map(ord, name[:3]), *map(ord, design[-3:])])
            decided = sum(verdict(made(rng, curve, DESIGNS[design], 5 * SPREAD, 3)) == "agrees" for _ in range(tables))
            yield rate(f"two {name}s 5 spreads apart, {design}, 3 seeds: told apart", "≥ .80", decided, tables)
    yield from _sweeps(tables)


def _sweeps(tables: int) -> Iterator[Row]:
    """Settings that do not differ: the front of many is picked from noise, and must not beat the front of few."""
    for few, many, seeds in ((1, 5, 3), (2, 10, 3), (1, 5, 2), (3, 3, 3)):
        rng = np.random.default_rng([3, few, many, seeds])
        found = 0
        for _ in range(tables):
            items = []
            for group, n in ((FULL, few), (LORA, many)):
                for j in range(n):
                    hyper = dict(group.hyper) | {"learning_rate": 1e-4 * (j + 1), "domain": ""}
                    for s in range(seeds):
                        x, y = rng.normal((0.5, 0.6), 0.01)
                        items.append(run(group._replace(hyper=hyper), 100 * j + s, {"learning": x, "retention": y}))
            found += verdict(Runs(items, FULL.name)) != "cannot tell"
        yield rate(f"{few} and {many} settings of equal worth, {seeds} seeds: told apart", "≤ .05", found, tables)
