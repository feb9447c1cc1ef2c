"""Do the intervals of fast mode cover, and how wide are they? `python -m benchmarks.coverage`.

Random spectra of six families, 256 to 4096 values, square and wide; the exact columns are known, because the singular
values are prescribed. Gaussian probes do not know the singular vectors, so that a diagonal matrix stands for every
matrix with its spectrum. What is exact (too small to estimate) covers with a width of nothing, and is counted apart.

    --spectra N      how many; default 200
    --largest K      leave out the larger sizes
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from deltaw.metrics.quantities import Quantities
from deltaw.metrics.registry import evaluate
from deltaw.spectra import spectrum
from deltaw.spectra.quadrature import SECTIONS

Values = NDArray[np.float64]

SIZES = (256, 512, 1024, 2048, 4096)


def marchenko_pastur(k: int, beta: float) -> Values:
    """The quantiles of the singular values of noise, descending; beta = cols/rows."""
    theta = (np.arange(100_000) + 0.5) / 100_000 * math.pi
    lam = 1 + beta + 2 * math.sqrt(beta) * np.cos(theta)
    mass = np.cumsum(np.sin(theta) ** 2 / lam)
    return np.sqrt(np.interp((np.arange(k) + 0.5) / k, mass / mass[-1], lam))


def spiked(rng: np.random.Generator, k: int) -> Values:
    """Noise, with 1 to 40 directions above it."""
    s = marchenko_pastur(k, rng.uniform(0.1, 1))
    spikes = rng.integers(1, 41)
    s[:spikes] += s[0] * rng.uniform(0.5, 10, spikes)
    return s


def low_rank(rng: np.random.Generator, k: int) -> Values:
    """A few large values and noise far below."""
    rank = int(rng.integers(4, 65))
    return np.concatenate([rng.uniform(20, 40, rank), marchenko_pastur(k - rank, rng.uniform(0.3, 1))])


FAMILIES: dict[str, Callable[[np.random.Generator, int], Values]] = {
    "flat": lambda rng, k: np.full(k, rng.uniform(0.1, 10)),
    "power law": lambda rng, k: np.arange(1, k + 1) ** -rng.uniform(0.2, 0.9),
    "exponential": lambda rng, k: np.exp(-np.arange(k) / k * rng.uniform(1, 4)),
    "spiked": spiked,
    "low rank and noise": low_rank,
    "Marchenko-Pastur": lambda rng, k: marchenko_pastur(k, rng.uniform(0.1, 1)),
}


def random_spectrum(family: str, k: int, seed: int) -> Values:
    """Descending singular values, as float32 holds them."""
    s = np.sort(FAMILIES[family](np.random.default_rng(seed), k))[::-1]
    return s.astype(np.float32).astype(np.float64)


def intervals(s: Values, cols: int, seed: int) -> pd.DataFrame:
    """One row per column that fast mode gives for a (k × cols) matrix: `covered`, `width`, `method`."""
    k = len(s)
    x = torch.zeros(k, cols)
    x[:, :k].diagonal().copy_(torch.from_numpy(s.copy()))
    found = spectrum(x, mode="fast", generator=torch.Generator().manual_seed(seed))
    exact = evaluate(Quantities(s=s, energy=float(s @ s), rows=k, cols=cols), SECTIONS)
    if found.complete:
        got = evaluate(Quantities(s=found.values, energy=found.energy, rows=k, cols=cols), SECTIONS)
        bounds = {name: (got[name] * (1 - 1e-6), got[name] * (1 + 1e-6)) for name in got}
    else:
        bounds = {name: (i.low, i.high) for name, i in found.estimates.items()}
    return pd.DataFrame(
        {
            "metric": name,
            "method": found.method,
            "covered": low <= exact[name] <= high,
            "width": 0.0 if found.complete else (high - low) / exact[name],
        }
        for name, (low, high) in bounds.items()
        if exact.get(name)  # what takes the rounding out has no exact value: `benchmarks.calibration` covers it
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spectra", type=int, default=200)
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    options = parser.parse_args()
    sizes, families = [k for k in SIZES if k <= options.largest], list(FAMILIES)
    parts = []
    for i in range(options.spectra):
        k, family = sizes[i % len(sizes)], families[i // len(sizes) % len(families)]
        part = intervals(random_spectrum(family, k, i), k * (1 + i % 2), i)
        parts.append(part.assign(size=k, family=family))
    table = pd.concat(parts)
    print(f"{options.spectra} random spectra, {len(table)} intervals of 95 %\n")
    for by in ("size", "family", "metric"):
        print(summary(table, by), "\n")
    estimated = table[table["method"] != "exact"]
    for title, some in (("all", table), ("estimated", estimated)):
        half, most = some["width"].quantile([0.5, 0.9])
        print(f"{title}: {some['covered'].mean():.1%} covered, median width {half:.2%}, 90 % of them below {most:.2%}")


def summary(table: pd.DataFrame, by: str) -> str:
    """Coverage and widths by one of the table's columns."""
    grouped = table.groupby(by, sort=False)
    shown = pd.DataFrame(
        {
            "intervals": grouped.size(),
            "estimated": grouped["method"].agg(lambda m: (m != "exact").mean()).map("{:.0%}".format),
            "covered": grouped["covered"].mean().map("{:.1%}".format),
            "median width": grouped["width"].median().map("{:.2%}".format),
        }
    )
    return str(shown.to_string())


if __name__ == "__main__":
    main()
