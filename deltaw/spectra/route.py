"""Which way to the spectrum of a ΔW: the one place that decides.

| ΔW | way | cost, k = min(m, n) |
|---|---|---|
| factors B·A | QR of both, r×r SVD | (m + n)·r² |
| dense, stored, a few directions and rounding | certified low rank | a sample, 6 to 24 products with r + 8 columns |
| dense, `fast`, k ≥ FAST_FROM | deflated stochastic Lanczos quadrature | some 24 to 80 products with 24 columns |
| dense, one of many of its shape, k ≤ BATCHED_UP_TO | the same, of the whole stack at once | the same, in one call |
| dense | eigenvalues of the float64 Gram matrix | m·n·k + 4/3·k³ |
"""

from __future__ import annotations

import torch
from torch import Tensor

from deltaw.metrics.quantities import Quantities
from deltaw.spectra.bootstrap import by_line
from deltaw.spectra.estimate import estimate_spectrum, frobenius_squared
from deltaw.spectra.exact import singular_values
from deltaw.spectra.factored import factored_singular_values
from deltaw.spectra.low_rank import Noise, low_rank_spectrum
from deltaw.types import Factors, Spectrum

# k from which an estimate is cheaper than the exact spectrum (measured: 1.2 to 1.7 times on a CPU; on an H100 3 times
# slower at 1024², as fast at 4096², 2.5 times faster at 11008×4096).
FAST_FROM = {"cpu": 1024, "cuda": 4096}
# k up to which a stack of equal shapes is solved in one call (`measurement.cost` makes them). Measured, against one by
# one: on a CPU with one thread 1.4 to 2 times faster at k ≤ 32, and slower from 64 on; on an H100 8 times at 32, 1.5
# times at 64, 1.1 times at 256.
BATCHED_UP_TO = {"cpu": 32, "cuda": 256}
ENERGIES = (1e-60, 1e60)  # between which float32 products neither underflow nor overflow; nor do float64 squares


def spectrum(
    delta: Tensor | Factors,
    *,
    mode: str = "exact",
    energy: float | None = None,
    noise: Noise | None = None,
    tolerance: float = 0.03,
    generator: torch.Generator | None = None,
) -> Spectrum:
    """The spectrum of a ΔW, the cheapest way that the mode allows.

    Args:
        delta: (m, n), or its factors.
        mode: `exact` or `fast`.
        energy: ‖ΔW‖F², summed over the entries in float64; computed if not given.
        noise: The rounding error in `delta`, where it was stored.
        tolerance: Fast mode: the relative width of an interval to aim for.
        generator: The source of random probes, on the device of `delta` or the CPU.

    Raises:
        TensorError: An entry is not finite, or no driver converges.
    """
    if isinstance(delta, Factors):
        return factored_singular_values(delta)
    x = delta.cpu() if delta.device.type == "mps" else delta  # Apple's GPUs have no float64
    energy = frobenius_squared(x) if energy is None else energy
    found, moderate = None, False
    if ENERGIES[0] < energy < ENERGIES[1]:  # not for zero, and not for what is not finite
        moderate = noise is not None  # then the energy is that of these very entries
        quantities = Quantities() if noise is None else noise.quantities()
        if noise is not None:
            found = low_rank_spectrum(x, noise, energy=energy, quantities=quantities, generator=generator)
        if found is None and mode == "fast" and min(x.shape) >= FAST_FROM[x.device.type]:
            quantities |= by_line(x, 0.0 if noise is None else noise.energy, energy)
            found = estimate_spectrum(x, energy=energy, quantities=quantities, tolerance=tolerance, generator=generator)
    return found or singular_values(x, moderate=moderate)
