"""The spectrum's metrics without the spectrum: deflated stochastic Lanczos quadrature, until the intervals are narrow.

One block Krylov space from Gaussian probes serves for both parts: its converged Ritz values are the leading singular
values, and its quadrature sees the rest (`deltaw.spectra.quadrature`). The space grows until every interval is within
the tolerance, or further growth would cost too much for what it brings.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deltaw.metrics.quantities import Quantities
from deltaw.spectra.krylov import BlockKrylov, Ritz, operator, refine
from deltaw.spectra.quadrature import Estimator, excess, leading_count
from deltaw.types import Spectrum, Vector

BLOCK = 24  # probes: fewer vary more and wait for memory, more converge more slowly
LOOKS = (12, 18, 27, 40)  # steps after which the intervals are looked at
LARGEST_SHARE = 3  # the space may take k/3 dimensions: beyond that the exact spectrum is cheaper
STALLED = 0.85  # stop when a look leaves more of the width: what the probes disagree on does not shrink with steps
REFINE = 1e-2  # share of the energy outside the leading values below which these are refined in float64
FLOAT32 = 1e-6  # … below which float32 products do not see the rest


def estimate_spectrum(
    x: Tensor,
    *,
    energy: float | None = None,
    quantities: Quantities | None = None,
    tolerance: float = 0.03,
    generator: torch.Generator | None = None,
) -> Spectrum | None:
    """The leading singular values and an interval for every metric.

    Args:
        x: (m, n), finite, not zero.
        energy: ‖X‖F²; computed if not given.
        quantities: What the metrics need beside the spectrum: `noise_row`, `noise_col` (optional).
        tolerance: The relative width to aim for.
        generator: The source of the probes, on x's device or the CPU.

    Returns:
        A `Spectrum` of method `estimate`; its note says where intervals are wider than the tolerance. None for a
        matrix so small that the exact spectrum costs less.
    """
    rows, cols = x.shape
    x = x.T if rows < cols else x
    energy = frobenius_squared(x) if energy is None else energy
    looks = [steps for steps in LOOKS if steps * BLOCK <= min(rows, cols) // LARGEST_SHARE]
    if not looks:
        return None
    estimator = Estimator(rows, cols, energy, quantities or Quantities())
    space = BlockKrylov(operator(x), BLOCK, looks[-1] * BLOCK, generator)
    before = math.inf
    for steps in looks:
        space.extend(steps)
        ritz = space.ritz()
        leading, left = refined(x, space, ritz, energy)
        if left < FLOAT32 * energy and space.x.dtype == torch.float32:
            space = BlockKrylov(operator(x, torch.float64), BLOCK, looks[-1] * BLOCK, generator)
            space.extend(steps)
            ritz = space.ritz()
            leading, left = refined(x, space, ritz, energy)
        intervals = estimator.intervals(space, ritz, leading)
        wide = excess(intervals, tolerance)
        if wide <= 1 or wide > STALLED * before:
            break
        before = wide
    note = f"estimated from a block Krylov space of dimension {space.dimension}"
    if wide > 1:
        note += f"; the widest interval is {wide:.1f} times the tolerance"
    return Spectrum(leading, rows, cols, "estimate", energy, intervals, note)


def refined(x: Tensor, space: BlockKrylov, ritz: Ritz, energy: float) -> tuple[Vector, float]:
    """The leading values that have converged and the energy that is left, in float64 where the difference cancels."""
    count = leading_count(ritz)
    top = space.triplets(ritz, count)
    values: Vector = top.S.cpu().numpy()
    left = energy - float(values @ values)
    if count and left < REFINE * energy:
        values = refine(x, top.U).S.cpu().numpy()
        left = energy - float(values @ values)
    return values, left


def frobenius_squared(x: Tensor) -> float:
    """‖X‖F², summed in float64."""
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2
