"""A spectrum as the metrics see it: singular values, descending, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from deltaw.errors import OptionError
from deltaw.types import Vector


def descending(s: ArrayLike) -> Vector:
    """Singular values as a descending float64 vector.

    Args:
        s: Singular values, in any order.

    Raises:
        OptionError: They are not a vector of finite, non-negative numbers.
    """
    values = np.asarray(s, dtype=np.float64)
    if values.ndim != 1:
        raise OptionError(f"singular values have shape {values.shape}; expected one dimension")
    # Every metric asks this of every spectrum: one comparison settles the usual case, and is false for a NaN.
    if values.size and values[0] < np.inf and values[-1] >= 0 and (values[1:] <= values[:-1]).all():
        return values
    if values.size and not (np.isfinite(values).all() and values.min() >= 0):
        bad = values[~(np.isfinite(values) & (values >= 0))]
        raise OptionError(
            f"singular values hold {bad[0]} ({bad.size} such); expected finite numbers that are not negative"
        )
    if np.any(values[1:] > values[:-1]):
        values = np.sort(values)[::-1]
    return values


def normalised(s: ArrayLike) -> Vector:
    """σ/σ1, descending; all zeros for ΔW = 0.

    Dividing first keeps σ² and σ⁴ of very small or large updates from underflow and overflow, and changes no
    metric: all of them are ratios.

    Raises:
        OptionError: See `descending`.
    """
    s = descending(s)
    return s if is_zero(s) else s / s[0]


def is_zero(s: Vector) -> bool:
    """Whether `s` (descending) is the spectrum of ΔW = 0, or has no values."""
    return not (s.size and s[0] > 0)


def truncated(s: Vector, energy: float | None) -> bool:
    """Whether `s` (descending) holds only leading values: Σσ² falls short of the energy of the whole matrix.

    A part in 10⁹ is the accuracy to which a spectrum and the sum over the entries can be compared.
    """
    return energy is not None and float(s @ s) < energy * (1 - 1e-9)
