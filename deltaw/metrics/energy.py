"""What a rank-r adapter could keep of ΔW at best: the energy of its best rank-r approximation.

Source: Eckart & Young 1936; Mirsky 1960.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from numpy.typing import ArrayLike

from deltaw.errors import OptionError
from deltaw.metrics.registry import metric
from deltaw.metrics.spectrum import descending, is_zero, truncated
from deltaw.types import Vector

RANKS = (1, 4, 8, 16, 32, 64, 128, 256)
DENOISED = 16  # the rank of which the energy is also known with the rounding taken out


def energy_at(s: ArrayLike, r: int, energy: float | None = None) -> float:
    """Share of ΔW's energy that its best rank-r approximation keeps.

    Args:
        s: Singular values, (k,); or the leading ones, with `energy`.
        r: The rank, at least 1; 1.0 is kept where r ≥ k.
        energy: Σσ² of all values where `s` holds only the leading ones; else None.

    Returns:
        A number in [0, 1]; NaN for ΔW = 0, and where fewer than r leading values are known.

    Raises:
        OptionError: r is not positive, or `s` is no spectrum.
    """
    if r < 1:
        raise OptionError(f"the rank is {r}; expected 1 or more")
    s = descending(s)
    if is_zero(s):
        return math.nan
    if energy is None or not truncated(s, energy):
        p = s / s[0]
        return float(p[:r] @ p[:r] / (p @ p)) if r < s.size else 1.0
    return float(s[:r] @ s[:r] / energy) if r <= s.size else math.nan


def _column(r: int) -> Callable[..., float]:
    def energy_at_r(s: Vector, energy: float | None = None) -> float:
        return energy_at(s, r, energy)

    energy_at_r.__name__ = energy_at_r.__qualname__ = f"energy_at_{r}"
    energy_at_r.__doc__ = f"Share of the update's energy that an adapter of rank {r} could keep at best."
    formula = f"Σ_{{i≤{r}}} σ² / Σσ²"
    denoised = "energy_at_16_denoised" if r == DENOISED else ""
    register = metric(
        section="energy",
        formula=formula,
        unit="share",
        source="Eckart & Young 1936",
        hidden_by_noise=True,
        denoised=denoised,
    )
    return register(energy_at_r)


energy_at_1 = _column(1)
energy_at_4 = _column(4)
energy_at_8 = _column(8)
energy_at_16 = _column(16)
energy_at_32 = _column(32)
energy_at_64 = _column(64)
energy_at_128 = _column(128)
energy_at_256 = _column(256)
