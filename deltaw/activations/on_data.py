"""What ΔW does to the inputs of a data set: the spectrum of ΔW·C^½, and how large that is against W0·C^½.

‖ΔW·C^½‖F² is the mean of ‖ΔW·x‖². The spectrum takes the way of the plain one, so that factors stay factors and fast
mode has its intervals. Of a sketch, C is known up to ρ·I either way: what follows from that is an interval as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from deltaw.activations.moments import Moments
from deltaw.metrics import REGISTRY
from deltaw.metrics.quantities import Quantities
from deltaw.spectra import seeded, spectrum
from deltaw.spectra.estimate import frobenius_squared
from deltaw.types import Factors, Interval, Spectrum

SETS = ("data", "source")  # what the columns of the first and of the second data set end with
# The plain metrics of σ that have a twin on data.
FROM_SPECTRUM = tuple(m.name.removesuffix("_on_data") for m in REGISTRY.values() if "s_on_data" in m.parameters)


@dataclass(frozen=True)
class Effect:
    """What ΔW does to the inputs of one data set.

    Attributes:
        delta_sq: ‖ΔW·C^½‖F².
        base_sq: ‖W0·C^½‖F²; None without a base.
        found: The spectrum of ΔW·C^½.
        estimates: Metrics that are estimated, by what their plain columns are called.
        bounds: The intervals of metrics that are not estimated, by the same names.
        sketched: Whether C was a sketch, so that sums over small σ are not known.
    """

    delta_sq: float
    base_sq: float | None
    found: Spectrum
    estimates: Mapping[str, Interval]
    bounds: Mapping[str, tuple[float, float]]
    sketched: bool = False

    def quantities(self, which: str) -> Quantities:
        """What the metrics of a data set ask for."""
        assert which in SETS
        s, energy = self.found.values, None if self.found.complete else self.found.energy
        if which == "source":
            return Quantities(
                s_on_source=s,
                energy_on_source=energy,
                delta_on_source_sq=self.delta_sq,
                base_on_source_sq=self.base_sq,
            )
        return Quantities(
            s_on_data=s, energy_on_data=energy, delta_on_data_sq=self.delta_sq, base_on_data_sq=self.base_sq
        )


def effect(
    delta: Tensor | Factors,
    base: Tensor | None,
    moments: Moments,
    plain: Spectrum,
    *,
    name: str = "",
    mode: str = "exact",
    tolerance: float = 0.03,
) -> Effect:
    """Measure a ΔW on the inputs of its matrix.

    Args:
        delta: ΔW, (m, n), outputs × inputs, or its factors.
        base: W0, (m, n); None without one.
        moments: Of the inputs, on the device to compute on.
        plain: The spectrum of ΔW itself.
        name: What random probes are seeded by.
        mode, tolerance: As `analyze` has them.

    Raises:
        TensorError: An entry is not finite, or no driver converges.
        ActivationsError: The sums are no second moments.
    """
    moved = moments.apply(delta)
    generator = seeded(moments.sums.device, name)
    if isinstance(moved, Factors):
        found = spectrum(moved)
        delta_sq = float(found.values @ found.values)
    else:
        delta_sq = frobenius_squared(moved)
        found = spectrum(moved, mode=mode, energy=delta_sq, tolerance=tolerance, generator=generator)
    base_sq = None if base is None else moments.squared_norm(base)
    estimates = {name: found.estimates[name] for name in FROM_SPECTRUM if name in found.estimates}
    bounds: dict[str, tuple[float, float]] = {}
    if moments.error:
        estimates = {}
        bounds = _within(moments, plain, found, delta_sq, None if base is None else (base, base_sq or 0.0))
    return Effect(delta_sq, base_sq, found, estimates, bounds, sketched=bool(moments.error))


def _within(
    moments: Moments, plain: Spectrum, found: Spectrum, delta_sq: float, base: tuple[Tensor, float] | None
) -> dict[str, tuple[float, float]]:
    """What a sketch leaves open: C is between what was taken less ρ·I and that plus (error − ρ)·I."""
    below, above = (x / moments.count for x in moments.left_open)
    size = plain.energy or 0.0
    least, most = max(delta_sq - below * size, 0.0), delta_sq + above * size
    bounds: dict[str, tuple[float, float]] = {}
    if base is not None:
        W0, base_sq = base
        norm = frobenius_squared(W0)
        smallest, largest = max(base_sq - below * norm, 0.0), base_sq + above * norm
        if smallest:
            bounds["relative_change"] = math.sqrt(least / largest), math.sqrt(most / smallest)
    if not found.complete or not least:
        return bounds
    first = float(plain.values[0]) ** 2
    squares = found.values**2
    low, high = np.maximum(squares - below * first, 0.0), squares + above * first
    share_low = np.minimum(np.cumsum(low) / most, 1.0)
    share_high = np.minimum(np.cumsum(high) / least, 1.0)
    at = min(16, len(squares)) - 1
    bounds["energy_at_16"] = float(share_low[at]), float(share_high[at]) if at + 1 < len(squares) else 1.0
    reached = np.flatnonzero(share_low >= 0.9)
    bounds["rank_90"] = (
        float(np.flatnonzero(share_high >= 0.9)[0] + 1),
        float(reached[0] + 1) if reached.size else float(len(squares)),
    )
    return bounds


def unchanged(moments: Moments, base: Tensor | None) -> Effect:
    """The effect of an update that is 0."""
    base_sq = None if base is None else moments.squared_norm(base)
    return Effect(0.0, base_sq, Spectrum(np.zeros(1), 1, 1, energy=0.0), {}, {})
