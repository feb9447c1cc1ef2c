"""Certified low rank: an update that is a few directions and the rounding that storing it left, as merged LoRA is.

Three tests, the cheapest first; a matrix that fails one goes to the exact solver:

1. a sample of k/8 random rows: a low-rank update shows its rank there, and the rest of the sample's energy is noise;
2. a small block Krylov space finds every singular value above `noise_edge`, and each must have converged;
3. the energy that is left, ‖ΔW‖F² − Σσ², must be what rounding alone predicts.

Then the leading values are exact, and nothing else stands above the rounding. What depends on the rounding's own
spectrum is estimated from the same space (`deltaw.spectra.quadrature`).

Sources: Musco & Musco 2015; Halko, Martinsson & Tropp 2011, §4.3 (certifying what is left).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltaw.metrics import noise_edge
from deltaw.metrics.quantities import Quantities
from deltaw.spectra.estimate import refined
from deltaw.spectra.krylov import BlockKrylov, operator
from deltaw.spectra.quadrature import Estimator, excess
from deltaw.types import Spectrum, Vector

SMALLEST = {"cpu": 768, "cuda": 2048}  # k from which the attempt pays (on an H100: 15 ms instead of 12 at 1024²)
SAMPLE_SHARE = 8  # the sample has k/8 rows
LARGEST_SHARE = 3  # the space may take k/3 dimensions
OVERSAMPLING = 8  # columns of a block beyond the rank that the sample shows
PREDICTED = 1.05  # energy left, in units of the predicted rounding: the prediction is good to a few parts in a thousand
SIGNAL_SHARE = 0.5  # least share of the energy above the edge: below it the spectrum is mostly that of rounding
GIVE_UP = 2.0  # … beyond which more steps will not help
TOLERANCE = 0.1  # relative width of the intervals of what depends on the rounding
GAP_SHARE = 0.5  # of the distance between the quadrature rules: the spectrum of rounding has no tail of tiny values
# Steps after which they are looked at. The bulk of a square matrix reaches down to 0, and takes more of them.
LOOKS = (3, 5, 8, 12)
SQUARE_LOOKS = LOOKS[1:]
SQUARE = 0.8  # of the longer side


class Noise(NamedTuple):
    """The rounding error that storing a matrix left in it, as variances summed over its entries.

    Attributes:
        energy: Σ of all variances: what the error adds to ‖ΔW‖F².
        row, col: Sums by row (m,) and by column (n,).
        steps, counts: The different steps √(12·variance), and how many entries have each.
    """

    energy: float
    row: Vector
    col: Vector
    steps: Vector = np.zeros(0)
    counts: Vector = np.zeros(0)

    def quantities(self) -> Quantities:
        """As metrics ask for it."""
        there = self.counts.size > 0
        return Quantities(
            noise_row=self.row,
            noise_col=self.col,
            noise_steps=self.steps if there else None,
            noise_counts=self.counts if there else None,
        )

    @property
    def T(self) -> Noise:  # noqa: N802 (as in torch)
        """The noise of the transposed matrix."""
        return self._replace(row=self.col, col=self.row)


def low_rank_spectrum(
    x: Tensor,
    noise: Noise,
    *,
    energy: float,
    quantities: Quantities | None = None,
    generator: torch.Generator | None = None,
) -> Spectrum | None:
    """The values above the rounding, exactly, and intervals for the rest; None if that cannot be certified.

    Args:
        x: (m, n), finite, not zero.
        noise: The rounding in it.
        energy: ‖X‖F².
        quantities: What the metrics need beside the spectrum; default the noise's sums.
        generator: The source of randomness, on x's device or the CPU.
    """
    rows, cols = x.shape
    k = min(rows, cols)
    if k < SMALLEST[x.device.type] or not 0 < noise.energy < (1 - SIGNAL_SHARE) * PREDICTED * energy:
        return None
    quantities = noise.quantities() if quantities is None else quantities
    if rows < cols:
        x, noise = x.T, noise.T
    rank = _sampled_rank(x, noise, generator)
    if rank is None:
        return None
    block = -(-(rank + OVERSAMPLING) // 8) * 8
    space = BlockKrylov(operator(x, x.dtype), block, k // LARGEST_SHARE, generator)
    estimator = Estimator(rows, cols, energy, quantities, gap_share=GAP_SHARE)
    edge = noise_edge(noise.row, noise.col)
    for steps in SQUARE_LOOKS if min(rows, cols) > SQUARE * max(rows, cols) else LOOKS:
        if steps * block > space.capacity:
            break
        space.extend(steps)
        ritz = space.ritz()
        theta = ritz.values.numpy()
        if energy - float(theta @ theta) > GIVE_UP * noise.energy:
            break
        leading, _ = refined(x, space, ritz, energy)
        signal = int(np.count_nonzero(theta > edge))
        if signal > len(leading):  # not converged yet
            continue
        if not _certified(leading[:signal], noise, energy):
            break
        intervals = estimator.intervals(space, ritz, leading)
        if excess(intervals, TOLERANCE) <= 1:
            note = f"nothing but rounding after {signal} values, by a block Krylov space of dimension {space.dimension}"
            return Spectrum(leading[:signal], rows, cols, "low_rank", energy, intervals, note)
    return None


def _certified(signal: Vector, noise: Noise, energy: float) -> bool:
    """Whether what is left beside the signal is no more than rounding, and less than the signal."""
    left = energy - float(signal @ signal)
    return left <= PREDICTED * noise.energy and left <= (1 - SIGNAL_SHARE) * energy


def _sampled_rank(x: Tensor, noise: Noise, generator: torch.Generator | None) -> int | None:
    """How many values stand above the rounding in a sample of rows; None if the rest of it is not rounding.

    The lower half of the sample's spectrum holds less than half of its noise, and nothing else where the update's
    rank is below half the number of rows.
    """
    m, n = x.shape
    p = n // SAMPLE_SHARE
    where = generator.device if generator is not None else x.device
    chosen = torch.randperm(m, generator=generator, device=where)[:p].cpu()
    sample = x[chosen.to(x.device)].double()
    squares = torch.linalg.eigvalsh(sample @ sample.T).flip(0).cpu().numpy()
    row = noise.row[chosen.numpy()]
    if squares[p // 2 :].sum() > PREDICTED * row.sum() / 2:
        return None
    rank = int(np.count_nonzero(squares > noise_edge(row, noise.col * (p / m)) ** 2))
    return rank if rank <= p // 2 else None
