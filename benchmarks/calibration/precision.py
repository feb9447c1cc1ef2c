"""Precision: what is said of an update that was rounded, where the update is known.

Updates with power-law spectra, with Haar singular vectors or with rows of log-normal scale, are added to a bfloat16
base and stored in bfloat16; merged adapters and round trips go through every pair of files that they are found in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import deltaw
from benchmarks.calibration.rows import Row, rate
from deltaw.metrics import energy_at, rank_at
from deltaw.results.rows import Quoted, quote
from deltaw.types import Row as Cells

EXPONENTS = (0.3, 0.5, 0.7, 0.9, 1.2)
SIZES = (0.003, 0.01, 0.03)
KINDS = ("Haar vectors", "rows of log-normal scale")
SHAPES = ((512, 384), (1024, 1024))
WIDTHS = {  # of the interval of rank_90 over the rank, and of energy_at_16, in the median: by size
    0.003: ("≤ .40", "≤ .06"),
    0.01: ("≤ .25, or 10", "≤ .03"),
    0.03: ("published", "published"),
}
NAME = "model.layers.0.mlp.up_proj.weight"


class Trial(NamedTuple):
    """One update: its true rank_90 and energy_at_16, and what is quoted."""

    rank: float
    energy: float
    said_rank: Quoted
    said_energy: Quoted

    @property
    def holds_rank(self) -> bool:
        """Whether the interval of rank_90 holds it."""
        return self.said_rank.low <= self.rank <= self.said_rank.high

    @property
    def holds_energy(self) -> bool:
        """Whether the interval of energy_at_16 holds it, to the digits of a float."""
        return self.said_energy.low - 1e-9 <= self.energy <= self.said_energy.high + 1e-9


def power_law(shape: tuple[int, int], exponent: float, kind: str, g: torch.Generator) -> Tensor:
    """An update with σ_i ∝ i^−exponent (before its rows are scaled), (m, n)."""
    m, k = shape[0], min(shape)
    u, v = (torch.linalg.qr(torch.randn(d, k, generator=g, dtype=torch.float64)).Q for d in shape)
    update: Tensor = (u * torch.arange(1, k + 1, dtype=torch.float64) ** -exponent) @ v.T
    return update * torch.exp(0.7 * torch.randn(m, 1, generator=g).double()) if kind == KINDS[1] else update


def measured(base: Tensor, ft: Tensor) -> Cells:
    """The row of one matrix."""
    return deltaw.analyze({NAME: base}, {NAME: ft}, device="cpu", jobs=1).rows[0]


def trial(shape: tuple[int, int], exponent: float, kind: str, size: float, seed: int) -> Trial:
    """One update of a given size, stored."""
    g = torch.Generator().manual_seed(seed)
    base = (0.02 * torch.randn(*shape, generator=g)).bfloat16()
    update = power_law(shape, exponent, kind, g)
    update *= size * float(base.double().norm() / update.norm())
    s = np.linalg.svd(update.numpy(), compute_uv=False)
    row = measured(base, (base.double() + update).bfloat16())
    rank, energy = quote(row, "rank_90"), quote(row, "energy_at_16")
    assert rank is not None
    assert energy is not None
    return Trial(rank_at(s, 0.9), energy_at(s, 16), rank, energy)


def spectra(trials: int) -> Iterator[Row]:
    """Coverage and width of rank_90 and energy_at_16, by shape, kind and size, over all exponents."""
    for shape in SHAPES:
        repeats = trials if shape[0] < 1024 else max(1, trials // 6)
        for kind in KINDS:
            for size in SIZES:
                found = [
                    trial(shape, a, kind, size, 100 * i + j) for i in range(repeats) for j, a in enumerate(EXPONENTS)
                ]
                yield from _coverage(f"{shape[0]}×{shape[1]}, {kind}, {size:.1%}", size, found)


def _coverage(name: str, size: float, found: list[Trial]) -> Iterator[Row]:
    yield rate(f"{name}: rank_90 in its interval", "≥ .90", sum(t.holds_rank for t in found), len(found))
    yield rate(f"{name}: energy_at_16 in its interval", "≥ .90", sum(t.holds_energy for t in found), len(found))
    ranks, shares = WIDTHS[size]
    width = float(np.median([(t.said_rank.high - t.said_rank.low) / t.rank for t in found]))
    yield Row(f"{name}: width of rank_90, of the rank, median", ranks, width, len(found))
    width = float(np.median([t.said_energy.high - t.said_energy.low for t in found]))
    yield Row(f"{name}: width of energy_at_16, median", shares, width, len(found))


def _bf16(x: Tensor) -> Tensor:
    return x.bfloat16()


MERGES: Mapping[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "bfloat16 base, merged in bfloat16": lambda w, u: (_bf16(w), _bf16(_bf16(w).float() + u)),
    "the same, saved as float32": lambda w, u: (_bf16(w), _bf16(_bf16(w).float() + u).float()),
    "float16 base, merged in bfloat16": lambda w, u: (w.half(), _bf16(_bf16(w.half()).float() + u)),
    "float32 base, merged in bfloat16": lambda w, u: (w, _bf16(_bf16(w).float() + u)),
    "float32 base, stored in bfloat16 once": lambda w, u: (w, _bf16(w + u)),
    "float16 base, merged in float16": lambda w, u: (w.half(), (w.half().float() + u).half()),
    "float32 base, merged in float32": lambda w, u: (w, w + u),
}
TRIPS: Mapping[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "float32 → bfloat16": lambda w: (w, _bf16(w)),
    "float32 → bfloat16 → float32": lambda w: (w, _bf16(w).float()),
    "float32 → float16 → float32": lambda w: (w, w.half().float()),
    "float16 → bfloat16": lambda w: (w.half(), _bf16(w.half())),
    "float32 truncated to bfloat16": lambda w: (w, (w.view(torch.int32) & -65536).view(torch.float32)),
}


def weights(kind: str, seed: int) -> Tensor:
    """Weights as they are found: Gaussian, with rows of different scale, with heavy tails."""
    g = torch.Generator().manual_seed(seed)
    w = 0.02 * torch.randn(256, 192, generator=g)
    if kind == "rows":
        w *= torch.exp(torch.randn(256, 1, generator=g))
    if kind == "tails":
        w /= torch.randn(3, 256, 192, generator=g).square().mean(0).sqrt()
    return w


def files(trials: int) -> Iterator[Row]:
    """Merged rank-8 adapters and round trips: the rank above rounding, by the files that they are found in."""
    for name, merge in MERGES.items():
        found = 0
        for seed in range(trials):
            g = torch.Generator().manual_seed(1000 + seed)
            w = weights(("", "rows", "tails")[seed % 3], seed)
            u = torch.randn(256, 8, generator=g) @ torch.randn(8, 192, generator=g)
            row = measured(*merge(w, u * (0.05 * float(w.norm() / u.norm()))))
            found += row["signal_rank"] == 8
        yield rate(f"rank 8 of 5 %, {name}: signal_rank 8", "≥ .95", found, trials)
    for name, trip in TRIPS.items():
        rows = [measured(*trip(weights(("", "rows", "tails")[seed % 3], seed))) for seed in range(trials)]
        above = sum(row["signal_rank"] != 0 for row in rows)
        yield rate(f"no update, {name}: a direction above rounding", "≤ .01", above, trials)
        refused = sum(row["resolution"] == "below_precision" for row in rows)
        yield rate(f"no update, {name}: below_precision", "1", refused, trials)


def table(trials: int = 60) -> Iterator[Row]:
    """All of it.

    Args:
        trials: Of every file; a tenth as many updates of every exponent.
    """
    yield from files(trials)
    yield from spectra(max(1, trials // 10))
